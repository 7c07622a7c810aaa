"""Time and memory of drawing a batch against the buffer's size and the episodes' length.

python benchmark/sampling.py
"""

import statistics
import sys
import time
from pathlib import Path

import jax
import jax.numpy as jnp

sys.path.insert(0, str(Path(__file__).parent.parent))
from crl_jax import Transition, buffer_add, buffer_init, sample_pairs

NUM_ENVS, BATCH, DRAWS, REPEATS = 64, 256, 200, 9


def measure(capacity, episode_length):
    """Milliseconds a batch, and MB of scratch and results that XLA allocates for one."""
    steps = jnp.arange(capacity)[:, None]
    transition = Transition(jnp.zeros(10), jnp.zeros(2), jnp.zeros(3))
    buffer = buffer_init(transition, capacity, NUM_ENVS)
    traj_id = jnp.broadcast_to(steps // episode_length, (capacity, NUM_ENVS)).astype(jnp.int32)
    buffer = jax.jit(buffer_add)(buffer, buffer.data, traj_id)

    @jax.jit
    def draw(buffer, keys):
        def body(total, key):
            pairs = sample_pairs(buffer, key, (BATCH,), 0.99)
            return total + sum(jnp.sum(x) for x in jax.tree.leaves(pairs)), None

        return jax.lax.scan(body, jnp.zeros(()), keys)[0]

    keys = jax.random.split(jax.random.key(0), DRAWS)
    program = draw.lower(buffer, keys).compile()
    memory = program.memory_analysis()
    program(buffer, keys).block_until_ready()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        program(buffer, keys).block_until_ready()
        times.append((time.perf_counter() - start) / DRAWS)
    return statistics.median(times) * 1e3, (memory.temp_size_in_bytes + memory.output_size_in_bytes) / 1e6


if __name__ == "__main__":
    print(f"{NUM_ENVS} environments, batch {BATCH}")
    print(f"{'buffer size':>12} {'episode length':>15} {'ms a batch':>11} {'MB beside the buffer':>21}")
    for capacity, episode_length in [(1_000, 100), (1_000, 1_000), (10_000, 100), (10_000, 10_000), (100_000, 1_000)]:
        milliseconds, megabytes = measure(capacity, episode_length)
        print(f"{capacity:>12,} {episode_length:>15,} {milliseconds:>11.3f} {megabytes:>21.2f}")
