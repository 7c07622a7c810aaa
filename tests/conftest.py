"""All tests, and the scripts that they start, share one cache of compiled programs."""

import os
import signal
from importlib.metadata import version
from pathlib import Path

import hypothesis

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Tests compile for minutes what then runs for milliseconds. Without LLVM's optimisations, with XLA's older emitters and
# one thread for each program, that takes 0.2 of the time. XLA ends the process if it does not know a flag.
flags = ["--xla_backend_optimization_level=0", "--xla_cpu_parallel_codegen_split_count=1"]
if version("jax").startswith("0.10."):
    flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ.setdefault("XLA_FLAGS", " ".join(flags))
os.environ.setdefault("JAX_NUM_CPU_DEVICES", "4")  # for tests of several; all others use the first
# Scripts are to hear the ^C that tests send them, also if the tests run in the background, where it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
# For tests/mutants.py: that a test fails is all that it wants to know.
hypothesis.settings.register_profile("no_shrinking", phases=[hypothesis.Phase.explicit, hypothesis.Phase.generate])
