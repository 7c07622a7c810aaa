"""Checkpoints on disk, and policies as files."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import envs
from harness.checkpoint import Checkpoints, load_policy

pytestmark = pytest.mark.quick


def test_only_the_newest_are_kept(tmp_path):
    checkpoints = Checkpoints(tmp_path, keep=2)
    for epoch in (1, 2, 7, 9):
        folder = checkpoints.save({"x": np.arange(epoch, dtype=np.int32)}, {"epoch": epoch, "steps": 10 * epoch})
        assert folder == tmp_path / f"epoch_{epoch:06d}" and folder.is_dir()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["epoch_000007", "epoch_000009"]
    runner, progress = Checkpoints(tmp_path, keep=2).restore({"x": jax.ShapeDtypeStruct((9,), np.int32)})
    assert runner["x"].tolist() == list(range(9)) and (progress["epoch"], progress["steps"]) == (9, 90)


def test_other_arrays_are_refused(tmp_path):
    """Orbax would cut or pad them."""
    Checkpoints(tmp_path, keep=1).save({"x": np.zeros(3, np.float32)}, {"epoch": 1})
    for name, shape, dtype in (("x", 2, "float32"), ("x", 4, "float32"), ("x", 3, "int32"), ("y", 3, "float32")):
        with pytest.raises(envs.UsageError, match="was written by another version of the script"):
            Checkpoints(tmp_path, keep=1).restore({name: jax.ShapeDtypeStruct((shape,), dtype)})


def test_there_is_none_yet(tmp_path):
    with pytest.raises(envs.UsageError, match="holds no checkpoint yet: repeat its command, with --run-dir"):
        Checkpoints(tmp_path / "checkpoints", keep=1).restore({})


def test_one_of_another_device_is_restored_to_this_one(tmp_path):
    """Named tuples, keys of random numbers and scalars come back as what they were."""
    state = {"x": jnp.arange(3.0), "key": jax.random.key(7), "count": jnp.int32(5)}
    folder = Checkpoints(tmp_path, keep=1).save(state, {"epoch": 1})
    written = folder / "runner" / "_sharding"
    assert "cpu:0" in written.read_text()
    written.write_text(written.read_text().replace("cpu:0", "cuda:0"))
    here = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), state)
    restored, _ = Checkpoints(tmp_path, keep=1).restore(here)
    assert restored["x"].tolist() == [0, 1, 2] and restored["count"] == 5
    assert restored["x"].devices() == {jax.devices()[0]}
    assert jax.random.uniform(restored["key"]) == jax.random.uniform(state["key"])


def test_what_a_killed_process_was_writing_does_not_count(tmp_path):
    shapes = {"x": jax.ShapeDtypeStruct((3,), "float32")}
    folder = Checkpoints(tmp_path, keep=1).save({"x": np.ones(3, np.float32)}, {"epoch": 1})
    shutil.copytree(folder, tmp_path / "epoch_000002.orbax-checkpoint-tmp")
    checkpoints = Checkpoints(tmp_path, keep=1)
    assert checkpoints.restore(shapes)[1]["epoch"] == 1
    checkpoints.save({"x": np.zeros(3, np.float32)}, {"epoch": 2})
    assert [path.name for path in tmp_path.iterdir()] == ["epoch_000002"]
    assert checkpoints.restore(shapes)[0]["x"].tolist() == [0, 0, 0]


def test_policies_that_cannot_be_read(tmp_path):
    with pytest.raises(envs.UsageError, match="is not there: there is no checkpoint yet"):
        load_policy(tmp_path / "policy.jax")
    for content in (b"", b"no policy", bytes(1000)):
        (tmp_path / "policy.jax").write_bytes(content)
        with pytest.raises(envs.UsageError, match="is damaged, or was written by another version of jax"):
            load_policy(tmp_path / "policy.jax")
