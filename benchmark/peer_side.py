"""What runs in the Python environment of the peer, jaxgcrl 0.2.8; `peer.py` and `physics.py` make that and start this.

.venv-peer/bin/python -m benchmark.peer_side speed crl --env-id reacher
.venv-peer/bin/python -m benchmark.peer_side curve --env-id reacher --run-dir runs/peer
"""

import argparse
import csv
import importlib
import sys
import time
from pathlib import Path
from unittest import mock

import jax
import numpy as np

try:
    from jax import export
except ImportError:  # the jax that it pins
    from jax.experimental import export

try:
    import brax.v1.envs  # noqa: F401
except ImportError:  # a brax that fits the jax of new GPUs lacks it; the peer needs it for tasks of its kind alone
    sys.modules |= {"brax.v1": mock.MagicMock(), "brax.v1.envs": mock.MagicMock()}

from jaxgcrl.utils.config import RunConfig
from jaxgcrl.utils.env import create_env
from jaxgcrl.utils.evaluator import ActorEvaluator

from benchmark.peer import ITERATIONS, SPEED, jaxpr_as_fun, print_cost, program_of_iteration, rollout

EPISODE_LENGTH = 1001
EPOCHS = 3
# Unroll, steps of each environment before the first update, iterations an epoch.
SIZES = {"crl": (62, 1000, 4), "sac": (50, 1000, 8), "td3": (50, 1000, 8), "ppo": (80, 0, 30)}


def train(agent, evaluator, progress, **config):
    """Trains an agent of the peer, evaluated by this class instead of its own."""
    module = sys.modules[type(agent).__module__]
    setattr(module, "ActorEvaluator" if hasattr(module, "ActorEvaluator") else "Evaluator", evaluator)
    env = create_env(config["env"])
    env.goal_indices = np.asarray(env.goal_indices)  # a newer jax lets no array of its own be a static argument's part
    agent.train_fn(config=RunConfig(log_wandb=False, **config), train_env=env, eval_env=env, progress_fn=progress)


class NoEvaluator:
    """Its own asks reacher for a metric that reacher lacks; speed is measured without evaluation anyway."""

    def __init__(self, *args, **kwargs):
        pass

    def run_evaluation(self, policy_params, training_metrics, *args, **kwargs):
        return training_metrics


class Evaluator(ActorEvaluator):
    """The same evaluation, but of `success` alone, for the same reason."""

    def run_evaluation(self, training_state, training_metrics):
        self._key, key = jax.random.split(self._key)
        steps_near = self._generate_eval_unroll(training_state, key).info["eval_metrics"].episode_metrics["success"]
        near = {"success_rate": np.mean(steps_near > 0), "time_near_goal": np.mean(steps_near) / EPISODE_LENGTH}
        return training_metrics | near


def speed(given):
    """Trains at the settings of `peer.py`, and prints the speed of each epoch; with `cost` what an iteration asks. With
    `kernels` it writes an iteration as StableHLO."""
    module = importlib.import_module(f"jaxgcrl.agents.{given.algorithm}.{given.algorithm}")
    unroll, prefill, iterations = SIZES[given.algorithm]
    agent = {
        "crl": lambda: module.CRL(),
        "sac": lambda: module.SAC(use_her=True, min_replay_size=prefill),
        "td3": lambda: module.TD3(use_her=True, min_replay_size=prefill),
        "ppo": lambda: module.PPO(),
    }[given.algorithm]()
    # The buffers of SAC and TD3 want other multiples of the batch size.
    episode_length = 1000 if given.algorithm in ("sac", "td3") else EPISODE_LENGTH
    traced = given.what in ("cost", "kernels")
    if traced:
        iterations = ITERATIONS
    prefill_iterations = prefill // unroll + 1 if prefill else 0

    def progress(step, metrics, *args, **kwargs):
        if "training/sps" in metrics:
            print(f"{metrics['training/sps']:.0f} {SPEED}", flush=True)

    def start():
        train(
            agent,
            NoEvaluator,
            progress,
            env=given.env_id,
            num_envs=given.num_envs,
            episode_length=episode_length,
            num_evals=EPOCHS if given.algorithm == "crl" else EPOCHS + 1,
            total_env_steps=(prefill_iterations + EPOCHS * iterations) * given.num_envs * unroll,
        )

    if traced:
        # Each environment gives a window of an episode's length, less one step, to the batches.
        updates = given.num_envs * (episode_length - 1) // agent.batch_size
        if given.what == "cost":
            return print_cost("jaxgcrl", start, given.num_envs, unroll, updates)
        program = program_of_iteration(start)
        # For CUDA it would want a build of jaxlib with CUDA; for a TPU it writes the same operations without.
        anywhere = dict(lowering_platforms=["tpu"], disabled_checks=[export.DisabledSafetyCheck.platform()])
        exported = export.export(jax.jit(jaxpr_as_fun(program)), **anywhere)(*program.in_avals)
        (given.folder / "program").write_bytes(export.serialize(exported))
        return (given.folder / "loops").write_text(f"{unroll} {updates}")
    try:
        start()
    except (AssertionError, UnboundLocalError) as error:  # how it ends: whole epochs fall short, or nothing was saved
        print(f"ended in {type(error).__name__}")


def curve(given):
    """Trains the peer's CRL. Leaves a `metrics.csv` like ours, and prints lines like ours for each epoch."""
    given.run_dir.mkdir(parents=True, exist_ok=True)
    epoch, start = 0, time.time()
    with (given.run_dir / "metrics.csv").open("w", newline="") as file:
        names = "success_rate", "time_near_goal", "final_dist"
        writer = csv.writer(file)
        writer.writerow(["epoch", "steps", "seconds", *(f"eval/{name}" for name in names)])

        def progress(step, metrics, *args, **kwargs):
            nonlocal epoch
            epoch += 1
            measures = [float(metrics.get(name, "nan")) for name in names]
            writer.writerow([epoch, int(step), f"{time.time() - start:.1f}", *(f"{x:.6g}" for x in measures)])
            file.flush()
            print(f"{epoch}/{given.num_evals} {int(step):,} {metrics['training/sps']:,.0f} {measures}", flush=True)

        agent = importlib.import_module("jaxgcrl.agents.crl.crl").CRL()
        try:
            train(
                agent,
                Evaluator,
                progress,
                env=given.env_id,
                seed=given.seed,
                num_envs=given.num_envs,
                episode_length=EPISODE_LENGTH,
                num_evals=given.num_evals,
                total_env_steps=given.total_timesteps,
            )
        except (AssertionError, UnboundLocalError):  # how it ends
            if epoch < given.num_evals:
                raise


def rollouts(given):
    """Reads starts and actions by task from a file, and writes the observations that follow."""
    jax.config.update("jax_enable_x64", True)
    inputs, results = np.load(given.file), {}
    for env_id in sorted({name.split("/")[0] for name in inputs}):
        env = create_env(env_id)

        def one(q, qd, actions, env=env):
            state = env.reset(jax.random.PRNGKey(0))
            return rollout(env, state.replace(pipeline_state=env.pipeline_init(q, qd)), actions)

        q, qd, actions = (inputs[f"{env_id}/{name}"] for name in ("q", "qd", "actions"))
        results[env_id] = np.array(jax.jit(jax.vmap(one))(q, qd, actions))
    np.savez(given.file, **results)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="what", required=True)
    for what in ("speed", "cost", "kernels", "curve"):
        command = commands.add_parser(what)
        command.add_argument("--env-id", default="reacher")
        command.add_argument("--num-envs", type=int, default=64)
        if what == "curve":
            command.add_argument("--seed", type=int, default=1)
            command.add_argument("--num-evals", type=int, default=7)
            command.add_argument("--total-timesteps", type=int, default=600_000)
            command.add_argument("--run-dir", type=Path, required=True)
        else:
            command.add_argument("algorithm", choices=SIZES if what == "speed" else ["crl"])
        if what == "kernels":
            command.add_argument("--folder", type=Path, required=True)
    commands.add_parser("rollouts").add_argument("file")
    given = parser.parse_args()
    {"speed": speed, "cost": speed, "kernels": speed, "curve": curve, "rollouts": rollouts}[given.what](given)


if __name__ == "__main__":
    main()
