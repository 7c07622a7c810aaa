"""Shrinks films of learned policies (of `--capture-video` and `--evaluate`) for a page: fewer, smaller frames.

python benchmark/films.py runs/…/film_arm_reach_7.gif docs/arm_reach.gif
"""

import argparse

import numpy as np
from PIL import Image, ImageSequence


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("film")
    parser.add_argument("small")
    parser.add_argument("--width", type=int, default=600)
    parser.add_argument("--frames", type=int, default=50, help="at most, evenly spaced")
    args = parser.parse_args()
    film = Image.open(args.film)
    size = args.width, round(args.width * film.height / film.width)
    step = -(-film.n_frames // args.frames)
    frames = [
        frame.convert("RGB").resize(size, Image.Resampling.LANCZOS)
        for i, frame in enumerate(ImageSequence.Iterator(film))
        if i % step == 0
    ]
    # One palette for all, or what stands still would change its colour from frame to frame.
    strip = Image.fromarray(np.concatenate([np.asarray(frame) for frame in frames[:: max(len(frames) // 8, 1)]]))
    palette = strip.quantize(128, Image.Quantize.MAXCOVERAGE)
    frames = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    frames[0].save(args.small, save_all=True, append_images=frames[1:], duration=100, loop=0, optimize=True)


if __name__ == "__main__":
    main()
