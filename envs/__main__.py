"""Draws the gallery of all tasks: python -m envs docs/gallery.png"""

import sys

from envs.render import gallery

if len(sys.argv) != 2:
    sys.exit(__doc__)
gallery().save(sys.argv[1])
