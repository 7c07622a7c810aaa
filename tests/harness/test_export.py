"""The buffer of a checkpoint as a dataset of trajectories."""

import numpy as np
import pytest
from harness_runs import SCRIPTS

import envs
from harness.export import export, trajectories

WITH_BUFFER = [pytest.param(x, marks=pytest.mark.xdist_group(f"run of {x}")) for x in SCRIPTS if x != "ppo_jax"]


@pytest.mark.quick
def test_trajectories():
    """A ring of 8 slots after 11 steps, of two environments and two seeds."""
    steps = np.array([8, 9, 10, 3, 4, 5, 6, 7])
    state = np.stack([steps, 100 + steps], axis=1)[..., None].astype(np.float32)  # (capacity, num_envs, 1)
    traj_id = np.stack([np.select([steps < 9], [1], 2), np.select([steps < 4, steps < 9], [1, 2], 3)], axis=1)
    data = {"state": state, "action": 2 * state, "goal": 3 * state, "achieved": state}
    buffer = {"data": data, "traj_id": traj_id, "last_step": 0 * traj_id, "num_steps": np.int32(11)}
    dataset = trajectories(buffer)
    order = np.array([*range(3, 11), *range(103, 111)])
    assert (dataset["observations"][:, 0] == order).all() and (dataset["goals"][:, 0] == 3 * order).all()
    assert (dataset["actions"][:, 0] == 2 * order).all()
    assert order[dataset["terminals"] == 1].tolist() == [8, 10, 103, 108, 110]

    young = buffer | {"num_steps": np.int32(2)}
    assert trajectories(young)["observations"][:, 0].tolist() == [8, 9, 108, 109]
    both = {name: np.stack([np.asarray(buffer[name]), young[name]]) for name in ("traj_id", "num_steps")}
    both["data"] = {name: np.stack([x, x]) for name, x in data.items()}
    assert trajectories(both)["observations"][:, 0].tolist() == [*order, 8, 9, 108, 109]


@pytest.mark.parametrize("script", WITH_BUFFER)
def test_export(script, finished, tmp_path):
    """Of a run; OGBench's own reader takes it, where it is installed."""
    directory, file = finished(script), tmp_path / "trajectories.npz"
    export(str(directory), file)
    dataset = dict(np.load(file))
    states = len(dataset["terminals"])
    assert dataset["observations"].shape == (states, 4)
    assert dataset["actions"].shape == (states, 6)  # chunks of three actions of two numbers
    assert dataset["goals"].shape == (states, 2) and states == 64 * 4
    same = (dataset["goals"][1:] == dataset["goals"][:-1]).all(1)  # as long as a trajectory lasts
    assert same[dataset["terminals"][:-1] == 0].all() and not same[dataset["terminals"][:-1] == 1].all()
    reader = pytest.importorskip("ogbench.utils")
    read = reader.load_dataset(file)
    assert len(read["observations"]) == len(read["next_observations"]) == states - dataset["terminals"].sum()
    inside = read["terminals"][:-1] == 0
    assert (read["next_observations"][:-1][inside] == read["observations"][1:][inside]).all()


@pytest.mark.xdist_group("fork")
@pytest.mark.quick
def test_a_run_without_a_buffer(finished, tmp_path):
    with pytest.raises(envs.UsageError, match="without a replay buffer"):
        export(str(finished("harness_fork")), tmp_path / "trajectories.npz")
