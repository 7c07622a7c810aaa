"""All tests, and the scripts that they start, share one cache of compiled programs."""

import os
import signal
from pathlib import Path

os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", str(Path(__file__).parent.parent / ".jax_cache"))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")
# Tests compile for minutes what then runs for milliseconds: without LLVM's optimisations it takes 0.6 of the time.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
# Scripts are to hear the ^C that tests send them, also if the tests run in the background, where it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
