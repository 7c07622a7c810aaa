"""Checkpoints of a whole training, and policies that stand alone. Nothing that is read here can execute code."""

import json
import os
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp

from envs.base import GoalEnv

_CHECKSUMS = "checksums.json"


def _checksum(path: Path) -> int:
    checksum = 0
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            checksum = zlib.crc32(block, checksum)
    return checksum


def _files(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.rglob("*")) if path.is_file() and path.name != _CHECKSUMS]


def _flush(path: Path):
    """Waits until a file, or which files a folder has, would survive a power failure."""
    descriptor = os.open(path, os.O_RDONLY)
    os.fsync(descriptor)
    os.close(descriptor)


def finished(folder: Path) -> list[Path]:
    """All checkpoints in `folder`, the oldest first."""
    epochs = {path.name.removeprefix("epoch_"): path for path in folder.glob("epoch_*")}
    return [epochs[epoch] for epoch in sorted(filter(str.isdecimal, epochs), key=int)]


def _describe(state: Any) -> dict[str, str]:
    """Shape and type of each array in a pytree, or of each `jax.ShapeDtypeStruct`, by its path."""
    return {
        jax.tree_util.keystr(path): f"{x.shape} {x.dtype}" for path, x in jax.tree_util.tree_leaves_with_path(state)
    }


def save(folder: Path, epoch: int, state: Any, info: dict, keep: int) -> int:
    """Writes `state`, any pytree of arrays, and `info`, for JSON, as the checkpoint of `epoch`; returns its bytes.

    It appears in `folder` at once and whole, or not at all; then all but the newest `keep` are deleted.
    """
    target = folder.absolute() / f"epoch_{epoch:06d}"
    partial = target.with_suffix(".partial")
    shutil.rmtree(partial, ignore_errors=True)  # of a process that was killed here
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(partial / "state", state)
    (partial / "info.json").write_text(json.dumps(info))
    (partial / "shapes.json").write_text(json.dumps(_describe(state)))
    # What orbax reads back is not always what it wrote: it does not see a flipped bit in a compressed array.
    checksums = {str(path.relative_to(partial)): _checksum(path) for path in _files(partial)}
    (partial / _CHECKSUMS).write_text(json.dumps(checksums))
    written = [partial, *partial.rglob("*")]
    for path in written:
        _flush(path)
    size = sum(path.stat().st_size for path in written if path.is_file())
    shutil.rmtree(target, ignore_errors=True)
    partial.rename(target)
    _flush(folder)
    for old in finished(folder)[:-keep]:
        shutil.rmtree(old)
    return size


def newest(folder: Path) -> tuple[Path, dict]:
    """The newest checkpoint in `folder`, for `restore`, and its info.

    Raises:
      ValueError: there is none, or it is damaged.
    """
    checkpoints = finished(folder)
    if not checkpoints:
        raise ValueError(f"{folder} holds no checkpoint yet: start the run anew")
    path = checkpoints[-1].absolute()
    try:
        intact = json.loads((path / _CHECKSUMS).read_text()) == {
            str(file.relative_to(path)): _checksum(file) for file in _files(path)
        }
    except (OSError, ValueError):
        intact = False
    if not intact:
        raise ValueError(f"the checkpoint {path} is damaged; delete it to go on from the one before, if there is one")
    return path, json.loads((path / "info.json").read_text())


def restore(path: Path, shapes: Any) -> Any:
    """The state of a checkpoint, a pytree like `shapes`, of `jax.ShapeDtypeStruct`s.

    Raises:
      ValueError: its arrays have other names or shapes.
    """
    if json.loads((path / "shapes.json").read_text()) != _describe(shapes):  # orbax would cut or pad them
        raise ValueError(f"the checkpoint {path} was written by another version of the script")
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])  # wherever it was written
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
    with ocp.StandardCheckpointer() as checkpointer:
        return checkpointer.restore(path / "state", shapes)


def export_policy(path: Path, policy: Callable[[jax.Array, jax.Array], jax.Array], env: GoalEnv):
    """Writes a function of observations, (batch, observation_size), and noise, (batch, action_size), as StableHLO.

    `jax.export.deserialize(path.read_bytes()).call` is that function again, without the code that defined it.
    """
    (batch,) = jax.export.symbolic_shape("batch")
    shapes = [jax.ShapeDtypeStruct((batch, size), "float32") for size in (env.observation_size, env.action_size)]
    exported = jax.export.export(jax.jit(policy), platforms=("cpu", "cuda", "tpu"))(*shapes)
    partial = path.with_suffix(".partial")
    partial.write_bytes(exported.serialize())
    partial.rename(path)


def load_policy(path: Path) -> Callable[[jax.Array, jax.Array], jax.Array]:
    """The function that `export_policy` wrote.

    Raises:
      ValueError: there is no such file, or it holds no policy.
    """
    try:
        exported = path.read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{path} is not there: the run has not come to its first checkpoint") from error
    try:
        return jax.export.deserialize(exported).call
    except Exception as error:  # whatever flatbuffers and XLA raise for bytes that are none of theirs
        raise ValueError(f"{path} is damaged, or was written by another version of jax") from error
