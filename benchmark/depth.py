"""Time and memory to compile the whole training against the depth of the residual networks.

python benchmark/depth.py
"""

import re
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import resource, sys, time
import jax
from crl_jax import Args, make_schedule, make_train
args = Args(depth=int(sys.argv[1]), residual=True, layer_norm=True, activation="swish")
init, train = make_train(args)
num_epochs = make_schedule(args).num_epochs
start = time.perf_counter()
jax.jit(lambda key: train(init(key), num_epochs)).lower(jax.random.key(0)).compile()
seconds = time.perf_counter() - start
print(f"{seconds:.1f} s, {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6:.2f} GB")
"""

if __name__ == "__main__":
    for repeat in range(3):
        for depth in (8, 64):
            run = subprocess.run(
                [sys.executable, "-c", PROGRAM, str(depth)],
                cwd=Path(__file__).parent.parent,
                capture_output=True,
                text=True,
                check=True,
                env={"JAX_ENABLE_COMPILATION_CACHE": "false", "PATH": "/usr/bin:/bin"},
            )
            (result,) = re.findall(r".* s, .* GB", run.stdout)
            print(f"run {repeat + 1}, {depth:>2} layers: {result}", flush=True)
