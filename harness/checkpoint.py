"""Checkpoints of a whole training, and policies that stand alone. No pickle: a checkpoint holds arrays, a policy is a
program of array operations."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from envs import GoalEnv, UsageError


class Checkpoints:
    """The newest `keep` checkpoints in a folder, `epoch_000005` and so on, each whole or not there. None only reads."""

    def __init__(self, folder: Path, keep: int | None):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep,
            read_only=keep is None,
            step_prefix="epoch",
            step_format_fixed_length=6,
            cleanup_tmp_directories=True,  # of a process that was killed while it wrote
            enable_async_checkpointing=False,
        )
        self._folder = folder.absolute()
        self._manager = ocp.CheckpointManager(self._folder, options=options)

    def save(self, runner: Any, progress: dict) -> Path:
        """Writes `runner`, any pytree of arrays, and `progress`, with the epoch; returns the checkpoint's folder."""
        epoch, info = progress["epoch"], progress | {"shapes": _describe(runner)}
        items = ocp.args.Composite(runner=ocp.args.StandardSave(runner), info=ocp.args.JsonSave(info))
        self._manager.save(epoch, args=items, force=True)
        return self._folder / f"epoch_{epoch:06d}"

    def restore(self, shapes: Any = None) -> tuple[Any, dict]:
        """The newest runner and its progress. The runner is a pytree like `shapes`, of `jax.ShapeDtypeStruct`s with
        shardings, or without them a dict of dicts by the names of its parts."""
        epoch = self._manager.latest_step()
        if epoch is None:
            raise UsageError(f"{self._folder} holds no checkpoint yet: repeat its command, with --run-dir")
        info = self._manager.restore(epoch, args=ocp.args.Composite(info=ocp.args.JsonRestore()))["info"]
        if shapes is not None and info["shapes"] != _describe(shapes):  # orbax would cast other types
            raise UsageError(f"the checkpoint in {self._folder} was written by another version of the script")
        here = None if shapes is not None else jax.sharding.SingleDeviceSharding(jax.devices()[0])
        items = ocp.args.Composite(runner=ocp.args.StandardRestore(shapes, fallback_sharding=here))
        return self._manager.restore(epoch, args=items)["runner"], info


def _describe(tree: Any) -> dict[str, str]:
    """Shape and type of each array, or of each `jax.ShapeDtypeStruct`, by its path."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {jax.tree_util.keystr(path): f"{x.shape} {x.dtype}" for path, x in leaves}


def export_policy(policy: Callable[[jax.Array, jax.Array], jax.Array], env: GoalEnv) -> bytes:
    """A function of observations, (batch, observation_size), and noise, (batch, action_size), as StableHLO.

    `jax.export.deserialize(…).call` is that function again, without the code that defined it. Where it was trained with
    `--action-chunk H`, an action is H single ones in a row, one after the other.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = [jax.ShapeDtypeStruct((batch, size), "float32") for size in (env.observation_size, env.action_size)]
    return jax.export.export(jax.jit(policy), platforms=("cpu", "cuda", "tpu"))(*shapes).serialize()


def load_policy(path: Path) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The function that `export_policy` made a file of."""
    if not path.is_file():
        raise UsageError(f"{path} is not there: there is no checkpoint yet")
    try:
        exported = jax.export.deserialize(bytearray(path.read_bytes()))
        exported.mlir_module()  # which a newer jax may have written in words that this one does not know
        return exported.call
    except Exception as error:  # whatever flatbuffers and XLA raise for bytes that are none of theirs
        raise UsageError(f"{path} is damaged, or was written by another version of jax") from error
