"""Several seeds, devices and hosts, each by an axis of JAX's own."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from harness.cli import RunArgs


def spread(args: RunArgs, init: Callable, train: Callable) -> tuple[jax.Array, Callable, Callable]:
    """The key of the run, and `init` and `train` for all its seeds or devices.

    For one seed on one device they are what they were. For several seeds the key, the runner and the metrics have a
    leading axis of seeds, split over as many devices as divide their number. Where devices share one training, the key
    and the runner have an axis of devices; the metrics are the same for all, and have none.
    """
    devices = args.num_devices
    if args.num_seeds > 1:
        devices = max(n for n in range(1, jax.device_count() + 1) if args.num_seeds % n == 0)
        seeds = args.seed + jnp.arange(args.num_seeds)
        init, train = jax.vmap(init), jax.vmap(train, in_axes=(0, None))
    elif devices > 1:
        seeds = jnp.full(devices, args.seed)
        init, train = _of_one_device(init, train)
    else:
        return jax.random.key(args.seed), init, train
    make_keys = jax.vmap(jax.random.key)
    if devices == 1:
        return make_keys(seeds), init, train
    mesh, split = jax.make_mesh((devices,), ("devices",), (AxisType.Auto,)), PartitionSpec("devices")
    of_metrics = split if args.num_seeds > 1 else PartitionSpec()
    shard_map = partial(jax.shard_map, mesh=mesh, in_specs=split, check_vma=False)

    def spread_train(runner, num_epochs):
        return shard_map(lambda runner: train(runner, num_epochs), out_specs=(split, of_metrics))(runner)

    keys = jax.jit(make_keys, out_shardings=NamedSharding(mesh, split))(seeds)
    return keys, shard_map(init, out_specs=split), spread_train


def _of_one_device(init: Callable, train: Callable) -> tuple[Callable, Callable]:
    """`init` and `train` of a device whose part of the axis of devices has size 1."""

    def init_part(key):
        return jax.tree.map(lambda x: jnp.expand_dims(x, 0), init(key[0]))

    def train_part(runner, num_epochs):
        runner, metrics = train(jax.tree.map(lambda x: x[0], runner), num_epochs)
        return jax.tree.map(lambda x: jnp.expand_dims(x, 0), runner), metrics

    return init_part, train_part


def shapes_of(init: Callable, key: jax.Array) -> Any:
    """A `jax.ShapeDtypeStruct` for each array of the runner `init(key)`; all are split over devices as the key is."""
    shapes = jax.eval_shape(init, key)
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=key.sharding), shapes)


def runner_of(args: RunArgs, runner: Any, i: int) -> Any:
    """The runner of the i-th seed; where devices share a training, that of a device of this process."""
    if args.num_devices > 1:
        return jax.tree.map(lambda x: x.addressable_data(0)[0], runner)
    return runner if args.num_seeds == 1 else jax.tree.map(lambda x: x[i], runner)
