"""From a clone to a film of a solved reacher: the README's first command, as printed, and how long it takes.

    python benchmark/quickstart.py

In a fresh clone, with a fresh virtual environment and an empty home, so without any cache.
"""

import os
import re
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
        print(f"{time.time() - start:.0f} s from clone to film, {page.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
