"""Where the seconds and the memory of a start go: CRL with default flags, from its first import to an evaluation.

python benchmark/startup.py --num-envs 64

In a process of its own with an empty compilation cache (cold), and in another with what the first left in it (warm).
Memory is the process's peak so far.
"""

import argparse
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def start(num_envs):
    """Prints a line for each part of a start: what it is, its seconds, the peak of memory after it in MB."""
    last = time.time()

    def done(part):
        nonlocal last
        before, last = last, time.time()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000
        print(part, f"{last - before:.1f}", memory, sep=" | ")

    sys.path.insert(0, str(ROOT))
    import jax

    import crl_jax

    done("import")
    args = crl_jax.Args(num_envs=num_envs)
    init, train = crl_jax.make_train(args)
    key = jax.random.key(args.seed)
    done("make the environment")
    init = jax.jit(init).lower(key)
    done("trace `init`")
    init = init.compile()
    done("compile `init`, or read it from the cache")
    runner = jax.block_until_ready(init(key))
    done("run `init`")
    train = jax.jit(train, static_argnums=1, donate_argnums=0).lower(runner, 1)
    done("trace `train`")
    train = train.compile()
    done("compile `train`, or read it from the cache")
    jax.block_until_ready(train(runner))
    done("run the first epoch")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=256)
    parser.add_argument("--one", action="store_true", help="one start, here and now")
    args = parser.parse_args()
    if args.one:
        return start(args.num_envs)
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--one", "--num-envs", str(args.num_envs)]
        options = dict(env=os.environ | {"JAX_COMPILATION_CACHE_DIR": cache}, stdout=subprocess.PIPE, text=True)
        cold, warm = (subprocess.run(command, check=True, **options).stdout.splitlines() for _ in range(2))
    print("| | cold, s | MB | warm, s | MB |\n|" + " --- |" * 5)
    for one, other in zip(cold, warm, strict=True):
        print(f"| {one} | {other.split(' | ', 1)[1]} |")


if __name__ == "__main__":
    main()
