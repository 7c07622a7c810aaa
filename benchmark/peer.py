"""Beside the peer, jaxgcrl 0.2.8, on the same machine.

    python -m benchmark.peer speed crl --env-id reacher    # or sac, td3, ppo: in turns, at equal settings
    python -m benchmark.peer learning                      # CRL, in turns: seconds until it has learnt
    python -m benchmark.peer curve --env-id ant --num-evals 8 --total-timesteps 2400000    # of the peer's CRL
    python -m benchmark.peer cost --backend generalized    # what CRL asks of any device, as XLA counts it

The peer has a Python environment of its own, .venv-peer, made here if it is missing. It learns with its own default
flags, but for the number of environments, steps and evaluations.

Speed is the median over the epochs after the first, of training alone; the first metric comes when the first epoch has
been compiled and run. Equal settings are 64 environments, episodes of 1,001 steps (the peer's SAC and TD3: 1,000) and
the peer's own defaults, or more work for ours where they cannot be had: `SETTINGS`.

Learning takes a seed a turn, the default flags of each, and counts from the start of the process. Ours runs twice, with
an empty compilation cache and with what the first run left in it; the peer has none. The evaluation before is named
too, the last at which it had not learnt yet: the peer's lie far apart.

Costs are floating point operations, and bytes read and written, before XLA optimises the program. XLA counts the body
of a loop once, so an iteration's count less those of the bodies of its unroll and of its updates is that of what lies
between the two: filling the buffer and drawing the batches. A whole iteration has the bodies as often as they run.
Loops within the physics count once, and native MuJoCo not at all: give ours the peer's, --backend generalized.
"""

import argparse
import dataclasses
import importlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from unittest import mock

import jax

try:
    from jax.extend.core import jaxpr_as_fun
except ImportError:  # the peer's jax
    from jax.core import jaxpr_as_fun

from benchmark.learning import train

ROOT = Path(__file__).parent.parent
PYTHON = ROOT / ".venv-peer" / "bin" / "python"
PACKAGES = (  # it pins a CUDA build of jax; these are what it runs with on a CPU
    "jax==0.4.25", "jaxlib==0.4.25", "flax<0.9", "brax==0.12.1", "matplotlib==3.8.4", "mujoco==3.2.7",
    "mujoco-mjx==3.2.7", "numpy<2", "scipy<1.14", "tyro==0.9.17", "wandb", "wandb-osh", "flatbuffers",
)  # fmt: skip
SPEED = "environment steps a second"
EPOCHS = 4
ITERATIONS = 97  # of a training that is only traced, for its cost: no other scan is as long

SETTINGS = {  # script, flags, iterations an epoch
    # Batch 256, two layers of 256, an update for each 16 steps; the peer's losses, activation and learning rates too.
    "crl": ("crl_jax", dict(
        batch_size=256, width=256, depth=2, env_steps_per_update=16, unroll_length=50, learning_starts=1000,
        activation="swish", contrastive_loss="fwd_infonce", target_entropy=-0.5,
        actor_lr=3e-4, critic_lr=3e-4, alpha_lr=3e-4, gamma=0.99, commanded_goals=0.0, anneal_lr=False,
        normalize_observations=False,
    ), 25),
    # Hindsight for all of a batch, `final`. The peer updates once for each 12.8 steps, we for each 12.
    "sac": ("sac_her_jax", dict(
        batch_size=256, width=256, depth=2, env_steps_per_update=12, unroll_length=51,
        her_ratio=1.0, her_strategy="final", gamma=0.9, actor_lr=1e-4, critic_lr=1e-4, alpha_lr=3e-4,
        normalize_observations=False,
    ), 25),
    "td3": ("td3_her_jax", dict(
        batch_size=256, width=256, depth=2, env_steps_per_update=12, unroll_length=51,
        her_ratio=1.0, her_strategy="final", gamma=0.9, actor_lr=3e-4, critic_lr=3e-4,
        policy_delay=2, smoothing_noise=0.2, smoothing_clip=0.5, exploration_noise=0.4, preactivation_penalty=0,
        normalize_observations=False,
    ), 25),
    # 5,120 steps, 16 minibatches of 320, twice. These are the sizes of the value function; see `small_policy`.
    "ppo": ("ppo_jax", dict(
        unroll_length=80, num_minibatches=16, update_epochs=2, width=256, depth=5, activation="swish", gamma=0.9,
        clip_eps=0.3, entropy_coef=1e-4, learning_rate=1e-4, normalize_observations=False,
    ), 40),
}  # fmt: skip


def set_up():
    """Makes the peer's environment, if it is missing."""
    if not PYTHON.exists():
        subprocess.run(["python3.11", "-m", "venv", PYTHON.parent.parent], check=True)
        for packages in (["--no-deps", "jaxgcrl==0.2.8"], PACKAGES):
            subprocess.run([PYTHON, "-m", "pip", "install", "-q", *packages], check=True)
    os.environ["WANDB_MODE"] = "disabled"


def peer_side(*words):
    """A command of `peer_side.py`, in its environment."""
    return [str(x) for x in (PYTHON, "-m", "benchmark.peer_side", *words)]


# ---- speed -----------------------------------------------------------------------------------------------------------


def small_policy(module):
    """Gives PPO's policy the peer's 4 layers of 32 units."""
    make_networks = module.make_networks

    def replacement(args, env):
        small = dataclasses.replace(args, width=32, depth=4)
        return make_networks(args, env)._replace(actor=make_networks(small, env).actor)

    module.make_networks = replacement


def make_args(algorithm, env_id, num_envs, backend, iterations=None, epochs=EPOCHS):
    """The script's module, and equal settings for `epochs` epochs of `iterations` iterations."""
    script, flags, usual_iterations = SETTINGS[algorithm]
    module = importlib.import_module(script)
    if algorithm == "ppo":
        small_policy(module)
    args = module.Args(env_id=env_id, backend=backend, num_envs=num_envs, episode_length=1001, **flags)
    schedule = module.make_schedule(args)
    total = schedule.warmup_iterations + epochs * (iterations or usual_iterations)
    steps = total * schedule.steps_per_iteration
    return module, dataclasses.replace(args, total_timesteps=steps, num_evals=epochs)


def no_evaluation(module):
    """A context in which programs are traced without their evaluation, as the peer's figures leave it out."""
    return mock.patch.object(module.envs, "evaluate", lambda *args: {})


def train_this(algorithm, env_id, num_envs, backend, iterations):
    """Prints the speed of each epoch."""
    module, args = make_args(algorithm, env_id, num_envs, backend, iterations)
    schedule = module.make_schedule(args)
    init, train = module.make_train(args)
    runner = jax.jit(init)(jax.random.key(0))
    with no_evaluation(module):
        train_epoch = jax.jit(lambda runner: train(runner, 1), donate_argnums=0).lower(runner).compile()
    for _ in range(EPOCHS):
        start = time.perf_counter()
        runner, _ = jax.block_until_ready(train_epoch(runner))
        steps = schedule.iterations_per_epoch * schedule.steps_per_iteration
        print(f"{steps / (time.perf_counter() - start):.0f} {SPEED}", flush=True)


def watch(command):
    """Environment steps a second, seconds from the start to the first metric, peak of memory in MB."""
    uncached = {name: value for name, value in os.environ.items() if name != "JAX_COMPILATION_CACHE_DIR"}
    start = time.time()
    pipe = subprocess.PIPE
    process = subprocess.Popen(command, cwd=ROOT, env=uncached, text=True, stdout=pipe, stderr=subprocess.DEVNULL)
    epochs = [(time.time() - start, float(line.split()[0])) for line in process.stdout if line.endswith(f"{SPEED}\n")]
    _, process.returncode, usage = os.wait4(process.pid, 0)
    if len(epochs) < 2:
        sys.exit(f"{command} failed")
    return statistics.median(speed for _, speed in epochs[1:]), epochs[0][0], usage.ru_maxrss / 1000


def compare_speed(given):
    flags = [given.algorithm, "--env-id", given.env_id, "--num-envs", str(given.num_envs)]
    backend = ["--backend", given.backend] if given.backend else []
    ours = [sys.executable, "-m", "benchmark.peer", "this", *flags, *backend]
    print("| turn | steps/s | peer's | ratio | first metric, s | peer's | peak memory, MB | peer's |\n|" + " --- |" * 8)
    ratios = []
    for turn in given.turns:
        theirs, own = watch(peer_side("speed", *flags)), watch(ours)
        ratios.append(own[0] / theirs[0])
        cells = [turn, f"{own[0]:,.0f}", f"{theirs[0]:,.0f}", f"{ratios[-1]:.1f}"]
        cells += [f"{x:,.0f}" for pair in zip(own[1:], theirs[1:], strict=True) for x in pair]
        print(f"| {' | '.join(map(str, cells))} |", flush=True)
    print(f"\nratio: median {statistics.median(ratios):.1f}, {min(ratios):.1f} to {max(ratios):.1f}")


# ---- learning --------------------------------------------------------------------------------------------------------


def seconds_until(curve, measure, threshold):
    """Seconds until the first evaluation that reaches the threshold; infinite if none does."""
    return next((float(row["seconds"]) for row in curve if float(row[measure]) >= threshold), float("inf"))


def compare_learning(given):
    """Prints a row for each run, and the ratios of the seconds until time near goal 0.7. What they are at least, had
    the peer got there right after its evaluation before, comes last."""
    backend = ["--backend", given.backend] if given.backend else []
    ours = ["crl_jax.py", "--env-id", given.env_id, *backend]
    peer = ["-m", "benchmark.peer", "curve", "--env-id", given.env_id, "--num-envs", str(given.num_envs)]
    peer += ["--num-evals", str(given.num_evals), "--total-timesteps", str(given.total_timesteps)]
    lines, ratios = [], []
    for seed in given.turns:
        near, before = {}, {}
        with tempfile.TemporaryDirectory() as folder:
            cached = os.environ | {"JAX_COMPILATION_CACHE_DIR": f"{folder}/cache"}
            for name, command in {"jaxgcrl": peer, "this, cold": ours, "this, warm": ours}.items():
                code, curve, _ = train([*command, "--seed", str(seed)], Path(folder, name), env=cached)
                if code:
                    sys.exit(f"{command} failed")
                near[name] = seconds_until(curve, "time_near_goal", 0.7)
                before[name] = max((s for row in curve if (s := float(row["seconds"])) < near[name]), default=0)
                cells = seconds_until(curve, "success_rate", 0.95), near[name], before[name]
                lines.append(f"| {seed} | {name} | {' | '.join(f'{x:.0f}' for x in cells)} |")
        cold, warm = near["this, cold"], near["this, warm"]
        ratios.append([theirs / own for theirs in (near["jaxgcrl"], before["jaxgcrl"]) for own in (cold, warm)])
    print("\n| seed | run | success rate ≥ 0.95, s | time near goal ≥ 0.7, s | evaluation before, s |")
    print("|" + " --- |" * 5, *lines, sep="\n")
    names = "cold", "warm", "cold, at least", "warm, at least"
    for name, column in zip(names, zip(*ratios, strict=True), strict=True):
        print(f"\n{name}: median {statistics.median(column):.1f}, {min(column):.1f} to {max(column):.1f} times as soon")


# ---- cost ------------------------------------------------------------------------------------------------------------


class Traced(Exception):
    """The scan over iterations has been reached; carries the program of an iteration."""


def program_of_iteration(start_training):
    """The program that `start_training`, called, is about to scan ITERATIONS times."""
    scan = jax.lax.scan

    def watch(f, init, xs=None, length=None, **options):
        if length == ITERATIONS:
            shapes = jax.tree_util.tree_map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), init)
            raise Traced(jax.make_jaxpr(lambda carry: f(carry, xs))(shapes))
        return scan(f, init, xs, length, **options)

    with mock.patch("jax.lax.scan", watch):
        try:
            start_training()
        except Traced as traced:
            return traced.args[0]
    raise RuntimeError("no scan over the iterations")


def bodies_of_scans(jaxpr, length):
    """The bodies of all scans of this length, wherever in the program they are."""
    for equation in jaxpr.eqns:
        for name, inner in equation.params.items():
            if name in ("jaxpr", "call_jaxpr"):
                if equation.primitive.name == "scan" and equation.params["length"] == length:
                    yield inner
                yield from bodies_of_scans(getattr(inner, "jaxpr", inner), length)


def cost_of(program):
    """Floating point operations, and bytes read and written."""
    shapes = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in program.in_avals]
    analysis = jax.jit(jaxpr_as_fun(program)).lower(*shapes).cost_analysis()
    return analysis["flops"], analysis["bytes accessed"]


def print_cost(name, start_training, num_envs, unroll_length, updates):
    """Prints a row, for a training of so many environments, steps of each and updates in an iteration."""
    program = program_of_iteration(start_training)
    unroll = next(bodies_of_scans(program.jaxpr, unroll_length))
    *_, update = bodies_of_scans(program.jaxpr, updates)  # it comes after the unroll, which can be as long
    costs = [cost_of(each) for each in (program, unroll, update)]
    (_, all_bytes), (_, step_bytes), (flops, size) = costs
    batch = (all_bytes - step_bytes - size) / updates
    step_mflop, step_mb = (
        (once + (unroll_length - 1) * step + (updates - 1) * update) / (num_envs * unroll_length) / 1e6
        for once, step, update in zip(*costs, strict=True)
    )
    cells = f"{flops / 1e6:,.0f}", f"{size / 1e6:,.1f}", f"{batch / 1e6:,.2f}", f"{step_mflop:,.1f}", f"{step_mb:,.2f}"
    print(f"| {name} | {' | '.join(cells)} |", flush=True)


def compare_cost(given):
    module, args = make_args("crl", given.env_id, given.num_envs, given.backend, ITERATIONS, epochs=1)
    init, train = module.make_train(args)
    runner = jax.eval_shape(init, jax.random.key(0))
    updates = module.make_schedule(args).updates_per_iteration
    print("| | MFLOP an update | MB an update | MB a batch | MFLOP a step, all in all | MB a step |\n|" + " --- |" * 6)
    print_cost("this", lambda: train(runner, 1), args.num_envs, args.unroll_length, updates)
    command = peer_side("cost", "crl", "--env-id", given.env_id, "--num-envs", given.num_envs)
    subprocess.run(command, cwd=ROOT, check=True)


# ---- rollouts, for `physics.py` --------------------------------------------------------------------------------------


def rollout(env, state, actions):
    """Observations (time, observation size) from `state` on, in double precision."""
    widen = lambda x: x.astype(float) if jax.numpy.issubdtype(x.dtype, jax.numpy.floating) else x  # noqa: E731
    state = jax.tree_util.tree_map(widen, state)

    def step(state, action):
        state = env.step(state, action)
        return state, state.obs

    return jax.lax.scan(step, state, actions)[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for what in ("speed", "this", "learning", "curve", "cost"):
        command = commands.add_parser(what)
        command.add_argument("--env-id", default="reacher")
        command.add_argument("--num-envs", type=int, default=64, help="for `learning` the peer's alone")
        if what in ("speed", "this"):
            command.add_argument("algorithm", choices=SETTINGS)
        if what == "this":
            command.add_argument("--iterations", type=int, help="of an epoch")
        if what != "curve":
            command.add_argument("--backend", help="our physics; by default the one that the task has on this machine")
        if what in ("speed", "learning"):
            command.add_argument("--turns", type=int, nargs="+", default=[1, 2, 3], help="for `learning` the seeds")
        if what in ("learning", "curve"):
            command.add_argument("--num-evals", type=int, default=7)
            command.add_argument("--total-timesteps", type=int, default=600_000)
        if what == "curve":
            command.add_argument("--seed", type=int, default=1)
            command.add_argument("--run-dir", required=True, help="gets metrics.csv")
    given = parser.parse_args()
    if given.what == "this":
        return train_this(given.algorithm, given.env_id, given.num_envs, given.backend, given.iterations)
    set_up()
    if given.what == "curve":
        command = peer_side(*sys.argv[1:])
        os.execv(command[0], command)
    {"speed": compare_speed, "learning": compare_learning, "cost": compare_cost}[given.what](given)


if __name__ == "__main__":
    main()
