"""From a clone to a film of a solved reacher: the README's first command, as printed, with its time and memory.

    python benchmark/quickstart.py

In a fresh clone, with a fresh virtual environment and an empty home, so without any cache.
"""

import os
import re
import resource
import subprocess
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent


def main():
    command = re.search(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL).group(1)
    with tempfile.TemporaryDirectory() as folder:
        clone = Path(folder) / "clone"
        start = time.time()
        subprocess.run(["git", "clone", "-q", ROOT, clone], check=True)
        subprocess.run(command, shell=True, check=True, cwd=clone, env=os.environ | {"HOME": folder})
        (page,) = clone.glob("runs/*/film.html")
        seconds, memory = time.time() - start, resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e6
        print(f"{seconds:.0f} s from clone to film, {memory:.1f} GB at most, a page of {page.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
