"""Pictures of the tasks, without a display.

python -m envs --env-id ant_u_maze --film ant_u_maze.gif   # an episode of random actions
python -m envs --env-id ant_u_maze --picture ant_u_maze.png
python -m envs --gallery gallery.png                       # all tasks
"""

import argparse
import sys

import jax
from PIL import Image

import envs
from envs.render import check_opengl, draw, gallery, random_rollout, save_film


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env-id", default="reacher", help="task to show")
    parser.add_argument("--seed", type=int, default=0, help="of the start, the goal and the actions")
    parser.add_argument("--steps", type=int, default=200, help="length of the film, control steps")
    parser.add_argument("--film", metavar="GIF", help="write an episode of random actions")
    parser.add_argument("--picture", metavar="PNG", help="write a picture of the start")
    parser.add_argument("--gallery", metavar="PNG", help="write one picture of all tasks")
    args = parser.parse_args()
    if not (args.film or args.picture or args.gallery):
        parser.error("nothing to do: give --film, --picture or --gallery")
    if args.steps < 1 or not 0 <= args.seed < 2**31:
        parser.error("--steps must be at least 1, --seed at least 0 and less than 2**31")
    try:
        check_opengl()
        if args.gallery:
            gallery().save(args.gallery)
        if args.film or args.picture:
            env = envs.make(args.env_id, backend="mujoco")
            q = random_rollout(env, jax.random.key(args.seed), args.steps if args.film else 1)
        if args.picture:
            Image.fromarray(draw(env, q[:1])[0]).save(args.picture)
        if args.film:
            save_film(args.film, draw(env, q), 1 / float(env.dt))
    except envs.UsageError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
