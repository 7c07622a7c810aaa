"""Trajectories of a run's replay buffer as a dataset for offline learning.

    python -m harness.export RUN_DIR trajectories.npz

The file has the format of OGBench (Park et al. 2025, arXiv 2410.20092), whose `load_dataset` reads it: `observations`
(N, state_dim), `actions` (N, action_size) and `terminals` (N,), 1 at the last state of each trajectory, one trajectory
after the other. That reader leaves out what else is in it: `goals` (N, goal_dim), those that were commanded. With
`--action-chunk H` a row is H steps.
"""

import logging
from pathlib import Path

import numpy as np
import tyro

from harness.checkpoint import Checkpoints
from harness.cli import check, errors_in_one_line

_COLUMNS = {"observations": "state", "actions": "action", "goals": "goal"}  # of the file; of the buffer


def trajectories(buffer: dict) -> dict[str, np.ndarray]:
    """The dataset of a buffer: `data`, a dict of arrays (..., capacity, num_envs, size), `traj_id` like them but for
    the size, and `num_steps` (...,). Axes before these are those of seeds or devices."""
    capacity, num_envs = buffer["traj_id"].shape[-2:]
    parts = []
    for part, num_steps in enumerate(np.ravel(buffer["num_steps"])):
        slots = np.arange(max(num_steps - capacity, 0), num_steps) % capacity  # from the oldest step to the newest

        def in_order(x, part=part, slots=slots):
            """(num_envs, time, size)"""
            return np.reshape(x, (-1, capacity, num_envs, x.shape[-1]))[part][slots].swapaxes(0, 1)

        last = np.diff(in_order(buffer["traj_id"][..., None]), axis=1, append=-1) != 0
        columns = {name: np.concatenate(in_order(buffer["data"][column])) for name, column in _COLUMNS.items()}
        parts.append(columns | {"terminals": last.ravel().astype(np.float32)})
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def export(run_dir: tyro.conf.Positional[str], file: tyro.conf.Positional[Path]):
    """Writes the trajectories of the newest checkpoint in `run_dir` to `file`, an .npz."""
    checkpoints = Path(run_dir, "checkpoints")
    check(checkpoints.is_dir(), f"{checkpoints} is not there: give the directory of a run with checkpoints")
    runner, _ = Checkpoints(checkpoints, keep=None).restore()
    check("buffer" in runner, f"{run_dir} is a run without a replay buffer")
    file = file.with_suffix(".npz")
    dataset = trajectories(runner["buffer"])
    np.savez_compressed(file, **dataset)
    print(f"{int(dataset['terminals'].sum())} trajectories, {len(dataset['terminals']):,} states: {file}")


if __name__ == "__main__":
    logging.getLogger("absl").setLevel(logging.ERROR)  # orbax warns that it is not going to write
    with errors_in_one_line():
        tyro.cli(export)
