"""`make_train` as a library: contracts, determinism, what influences what, and that it learns."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import Plane

import crl_jax
from crl_jax import Args, make_schedule, make_train, sample_pairs, total_loss
from envs import UsageError

TINY = Args(
    total_timesteps=160,
    num_envs=4,
    unroll_length=4,
    learning_starts=12,
    buffer_size=32,
    episode_length=10,
    num_evals=4,
    num_eval_envs=3,
    env_steps_per_update=8,
    batch_size=16,
    width=8,
    repr_dim=4,
)


def tree_equal(a, b):
    raw = jax.tree.map(
        lambda x: jax.random.key_data(x) if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key) else x, (a, b)
    )
    jax.tree.map(np.testing.assert_array_equal, *raw)


def train(args, seed=0, num_epochs=None):
    init, train = make_train(args, Plane())
    num_epochs = num_epochs or make_schedule(args).num_epochs
    return jax.jit(lambda key: train(init(key), num_epochs))(jax.random.key(seed))


@pytest.fixture(scope="module")
def tiny():
    return train(TINY)


def test_contract(tiny):
    runner, metrics = tiny
    expected = {f"eval/{name}" for name in ("success_rate", "time_near_goal", "final_dist", "episode_return")}
    expected |= {
        f"losses/{name}"
        for name in (
            "critic", "actor", "alpha_loss", "alpha", "entropy", "categorical_accuracy", "logits_pos", "logits_neg",
            "logsumexp", "param_norm",
        )
    }  # fmt: skip
    expected |= {
        f"train/{x}" for x in ("success_rate", "episode_length", "episode_return", "episodes", "unstable_resets")
    }
    assert metrics.keys() == expected
    assert all(value.shape == (4,) and np.isfinite(value).all() for value in metrics.values())
    assert int(runner.buffer.num_steps) == 40


def total_timesteps(schedule):
    iterations = schedule.warmup_iterations + schedule.num_epochs * schedule.iterations_per_epoch
    return iterations * schedule.steps_per_iteration


def test_every_step_is_accounted_for():
    schedule = make_schedule(TINY)
    assert schedule == (4, 16, 2, 2, 2, 4, 16)  # 2 iterations without updates, 4 epochs of 2: 160 environment steps
    assert total_timesteps(make_schedule(dataclasses.replace(TINY, total_timesteps=161))) >= 161
    assert make_schedule(dataclasses.replace(TINY, total_timesteps=1)) == (4, 16, 2, 2, 1, 1, 2)  # one learns
    many = make_schedule(dataclasses.replace(TINY, total_timesteps=16 * 103, num_evals=50))
    assert (many.iterations_per_epoch, many.num_epochs, many.num_updates) == (3, 34, 101 * 2)


def test_sizes_that_do_not_divide_are_rounded_up():
    sizes = itertools.product((1, 3, 8, 20, 64, 100), (1, 7, 25, 62), (1, 4, 16, 24), (1, 3), (1, 10_000))
    for num_envs, unroll, ratio, chunk, total in sizes:
        flags = dict(num_envs=num_envs, unroll_length=unroll, env_steps_per_update=ratio, action_chunk=chunk)
        schedule = make_schedule(Args(total_timesteps=total, **flags))
        assert schedule.updates_per_iteration * ratio == schedule.steps_per_iteration  # the ratio is kept
        assert schedule.steps_per_iteration == num_envs * chunk * schedule.unroll_length
        assert unroll <= chunk * schedule.unroll_length < unroll + chunk * ratio
        assert schedule.num_epochs >= 1 and total_timesteps(schedule) >= total
        warmup = (schedule.warmup_iterations + 1) * chunk * schedule.unroll_length
        assert 50 <= warmup < 50 + chunk * schedule.unroll_length  # --learning-starts


def test_same_seed_same_bits(tiny):
    tree_equal(train(TINY), tiny)
    other = train(TINY, seed=1)
    assert not np.array_equal(other[1]["losses/critic"], tiny[1]["losses/critic"])


def test_epochs_in_pieces_are_the_same_run(tiny):
    init, train_ = make_train(TINY, Plane())
    two = jax.jit(train_, static_argnums=1)
    runner, first = two(jax.jit(init)(jax.random.key(0)), 2)
    runner, second = two(runner, 2)
    np.testing.assert_allclose(
        np.concatenate([first["losses/critic"], second["losses/critic"]]), tiny[1]["losses/critic"], rtol=1e-4
    )


def test_evaluation_does_not_influence_training(tiny):
    more = train(dataclasses.replace(TINY, num_eval_envs=7))
    once = train(dataclasses.replace(TINY, num_evals=1))
    for runner, metrics in (more, once):
        assert not np.array_equal(metrics["eval/final_dist"], tiny[1]["eval/final_dist"])
        tree_equal(runner._replace(eval_key=tiny[0].eval_key), tiny[0])


@pytest.mark.parametrize("goal_noise", [0.0, 0.5])
def test_the_goals_of_pairs_have_noise(goal_noise, monkeypatch):
    """Of so many thresholds, independent in rows and coordinates; without it they are what was achieved, to the bit."""

    def pairs(*args):
        now, goal, log_mass = sample_pairs(*args)
        return now, jnp.full_like(goal, 3.0), log_mass

    def loss(params, batch, *others):
        total, metrics = total_loss(params, batch, *others)
        x, y = (batch[2] - 3.0).T
        moments = {"mean": jnp.mean(x), "std": jnp.std(y), "of_coordinates": jnp.std(x - y)}
        return total, metrics | moments | {"of_rows": jnp.std(x - jnp.roll(x, 1))}

    monkeypatch.setattr(crl_jax, "sample_pairs", pairs)
    monkeypatch.setattr(crl_jax, "total_loss", loss)
    _, metrics = train(dataclasses.replace(TINY, goal_noise=goal_noise, batch_size=2000, normalize_observations=False))
    sigma = goal_noise * Plane().goal_reach_thresh
    for name, factor in (("mean", 0), ("std", 1), ("of_coordinates", 2**0.5), ("of_rows", 2**0.5)):
        np.testing.assert_allclose(metrics[f"losses/{name}"], factor * sigma, atol=0.06 * sigma)
    assert len(set(metrics["losses/mean"].tolist())) == (4 if goal_noise else 1)  # drawn anew in each iteration


def test_a_row_is_the_one_of_several_transitions_whose_step_moved_the_goal_most(monkeypatch):
    """With its own future and all else that belongs to it."""
    env, n = Plane(), 3

    def pairs(buffer, key, shape, gamma):
        assert shape == (n, 2, TINY.batch_size)
        now, goal, log_mass = sample_pairs(buffer, key, shape, gamma)
        number = jnp.broadcast_to(jnp.arange(n)[:, None, None, None], (*shape, 1))  # of the candidate
        row = jnp.arange(TINY.batch_size)[:, None]
        moved = jnp.array([1.0, -3.0, 2.0])[(number + row) % n]  # farthest, and backwards, where number + row is 1
        moved_to = env.achieved(now.state) + moved
        now = now._replace(achieved=moved_to, action=number + 0 * now.action, goal=number + 0 * goal)
        return now, number + 0 * goal, number[..., 0] + 0 * log_mass

    def loss(params, batch, *others):
        total, metrics = total_loss(params, batch, *others)
        expected = ((1 - jnp.arange(TINY.batch_size)) % n)[:, None]
        wrong = [jnp.abs(x.reshape(len(x), -1) - expected).max() for x in batch[1:]]
        return total, metrics | {"wrong": jnp.stack(wrong).max()}

    monkeypatch.setattr(crl_jax, "sample_pairs", pairs)
    monkeypatch.setattr(crl_jax, "total_loss", loss)
    _, metrics = train(dataclasses.replace(TINY, best_of=n, normalize_observations=False))
    assert not metrics["losses/wrong"].any()


def test_many_seeds_in_one_call(tiny):
    init, train_ = make_train(TINY, Plane())
    keys = jax.numpy.stack([jax.random.key(0), jax.random.key(7)])
    runners = jax.jit(jax.vmap(init))(keys)
    _, metrics = jax.jit(jax.vmap(train_, in_axes=(0, None)), static_argnums=1)(runners, 4)
    assert all(value.shape == (2, 4) for value in metrics.values())
    np.testing.assert_allclose(metrics["losses/critic"][0], tiny[1]["losses/critic"], rtol=1e-2)
    assert not np.allclose(metrics["losses/critic"][0], metrics["losses/critic"][1], rtol=1e-3)


VARIANTS = [
    dict(energy="dot", contrastive_loss="binary_nce", activation="relu", logsumexp_penalty=0.0),
    dict(contrastive_loss="bwd_infonce", action_chunk=3, commanded_goals=0.5, num_envs=1, env_steps_per_update=1),
    dict(energy="l2", residual=True, layer_norm=True, depth=8, num_envs=3, unroll_length=7, env_steps_per_update=21),
    dict(buffer_size=13, num_evals=1, total_timesteps=1, env_steps_per_update=16, batch_size=2, episode_length=1),
    dict(episode_length=3, unroll_length=5, learning_starts=1, env_steps_per_update=4, batch_size=300),
]


@pytest.mark.parametrize("flags", VARIANTS, ids=lambda flags: "-".join(flags))
def test_any_sensible_combination_trains(flags):
    _, metrics = train(dataclasses.replace(TINY, **flags))
    assert all(np.isfinite(value).all() for value in metrics.values())


NONSENSE = [
    (dict(num_envs=0), "--num-envs 0: must be at least 1"),
    (dict(critic_lr=float("nan")), "--critic-lr nan: must be at least 0"),
    (dict(batch_size=1), "--batch-size must be at least 2"),
    (dict(random_goals=0.6, commanded_goals=0.5), r"--random-goals \+ --commanded-goals exceeds 1"),
    (dict(gamma=1.0), "--gamma must lie between 0 and 1"),
    (dict(residual=True, depth=6), "--depth must be a multiple of 4"),
    (dict(noise_correlation=1.0), "--noise-correlation must be less than 1"),
]


@pytest.mark.parametrize(("flags", "message"), NONSENSE, ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")
def test_nonsense_is_refused(flags, message):
    with pytest.raises(UsageError, match=message):
        dataclasses.replace(TINY, **flags)
