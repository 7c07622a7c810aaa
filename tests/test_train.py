"""`make_train` as a library: contracts, determinism, what influences what, and that it learns."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest

from crl_jax import Args, make_schedule, make_train

TINY = Args(
    backend="mujoco",
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


def train(args, seed=0, num_epochs=None, optimise=0):
    init, train = make_train(args)
    num_epochs = num_epochs or make_schedule(args).num_epochs
    options = {"xla_backend_optimization_level": optimise}  # little is worth it (conftest.py)
    return jax.jit(lambda key: train(init(key), num_epochs), compiler_options=options)(jax.random.key(seed))


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
            "logsumexp",
        )
    }  # fmt: skip
    assert metrics.keys() == expected | {"charts/unstable_resets"}
    assert all(value.shape == (4,) and np.isfinite(value).all() for value in metrics.values())
    assert int(runner.buffer.num_steps) == 40


def test_every_step_is_accounted_for():
    schedule = make_schedule(TINY)
    assert schedule == (16, 2, 2, 2, 4, 16)  # 2 iterations without updates, 4 epochs of 2: 160 environment steps
    odd = make_schedule(dataclasses.replace(TINY, total_timesteps=161))
    assert odd.total_timesteps >= 161
    many = make_schedule(dataclasses.replace(TINY, total_timesteps=16 * 103, num_evals=50))
    assert (many.iterations_per_epoch, many.num_epochs, many.num_updates) == (3, 34, 101 * 2)


def test_same_seed_same_bits(tiny):
    tree_equal(train(TINY), tiny)
    other = train(TINY, seed=1)
    assert not np.array_equal(other[1]["losses/critic"], tiny[1]["losses/critic"])


def test_epochs_in_pieces_are_the_same_run(tiny):
    init, train_ = make_train(TINY)
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


def test_many_seeds_in_one_call(tiny):
    init, train_ = make_train(TINY)
    keys = jax.numpy.stack([jax.random.key(0), jax.random.key(7)])
    runners = jax.jit(jax.vmap(init))(keys)
    _, metrics = jax.jit(jax.vmap(train_, in_axes=(0, None)), static_argnums=1)(runners, 4)
    assert all(value.shape == (2, 4) for value in metrics.values())
    np.testing.assert_allclose(metrics["losses/critic"][0], tiny[1]["losses/critic"], rtol=1e-2)
    assert not np.allclose(metrics["losses/critic"][0], metrics["losses/critic"][1], rtol=1e-3)


def test_log_is_called_while_training_runs():
    logged = []
    init, train_ = make_train(TINY, log=lambda metrics: logged.append((int(metrics["num_steps"]), metrics)))
    _, metrics = jax.block_until_ready(jax.jit(lambda key: train_(init(key), 4))(jax.random.key(0)))
    assert [num_steps for num_steps, _ in logged] == [16, 24, 32, 40]
    for epoch, (_, values) in enumerate(logged):
        for name in metrics:
            np.testing.assert_allclose(values[name], metrics[name][epoch], rtol=1e-6, err_msg=name)


VARIANTS = [
    dict(energy="dot", contrastive_loss="binary_nce", activation="relu", logsumexp_penalty=0.0),
    dict(energy="cosine", contrastive_loss="bwd_infonce", depth=1, num_envs=1, env_steps_per_update=1),
    dict(energy="l2", residual=True, layer_norm=True, depth=8, num_envs=3, unroll_length=7, env_steps_per_update=21),
    dict(buffer_size=13, num_evals=1, total_timesteps=1000, env_steps_per_update=16, batch_size=2, episode_length=1),
    dict(episode_length=3, unroll_length=5, learning_starts=1, env_steps_per_update=4, batch_size=300),
]


@pytest.mark.parametrize("flags", VARIANTS, ids=lambda flags: "-".join(flags))
def test_any_sensible_combination_trains(flags):
    _, metrics = train(dataclasses.replace(TINY, **flags))
    assert all(np.isfinite(value).all() for value in metrics.values())


NONSENSE = [
    (dict(energy="nom"), "--energy nom: choose one of norm, l2, dot, cosine"),
    (dict(contrastive_loss="nce"), "--contrastive-loss nce: choose one of fwd_infonce"),
    (dict(activation="gelu"), "--activation gelu: choose one of relu, swish"),
    (dict(num_envs=0), "--num-envs 0: must be a number, at least 1"),
    (dict(batch_size=1), "--batch-size 1: at least 2"),
    (dict(random_goals=1.5), "--random-goals 1.5: must lie between 0 and 1"),
    (dict(gamma=1.0), "--gamma 1.0: must lie between 0 and 1"),
    (dict(residual=True, depth=6), "--depth 6: .* try 8"),
    (dict(buffer_size=3), "--buffer-size 3: at least 12"),
    (dict(unroll_length=6, num_envs=3), "--unroll-length 6: .* multiple of 8 .* try 8"),
    (dict(noise_correlation=1.0), "--noise-correlation 1.0: must be less than 1"),
    (dict(target_entropy=1.0), "--target-entropy 1.0: must be below 0.68"),
    (dict(total_timesteps=32), "--total-timesteps 32: must be more than 32"),
]


@pytest.mark.parametrize(("flags", "message"), NONSENSE, ids=lambda x: next(iter(x)) if isinstance(x, dict) else "")
def test_nonsense_is_refused_with_what_would_do(flags, message):
    with pytest.raises(ValueError, match=message):
        make_train(dataclasses.replace(TINY, **flags))


def test_advice_on_sizes_is_sound():
    """Whatever the sizes, the numbers that an error message advises are accepted."""
    for num_envs, unroll_length, ratio in itertools.product((1, 3, 64, 100), (1, 7, 62), (1, 4, 16, 24)):
        args = dataclasses.replace(
            TINY, num_envs=num_envs, unroll_length=unroll_length, env_steps_per_update=ratio, buffer_size=10**5,
            total_timesteps=10**6,
        )  # fmt: skip
        try:
            make_schedule(args)
        except ValueError as error:
            make_schedule(dataclasses.replace(args, unroll_length=int(str(error).split()[-1])))


def test_short_training_improves():
    """Half a minute of reacher: closer to the goals at the end than the same run that does not learn."""
    args = Args(total_timesteps=120_000, num_evals=1, num_eval_envs=64, episode_length=200)
    _, learnt = train(args, optimise=3)
    _, untrained = train(dataclasses.replace(args, actor_lr=0.0, critic_lr=0.0, batch_size=2), optimise=3)
    assert learnt["losses/categorical_accuracy"][-1] > 2 / args.batch_size
    assert learnt["eval/final_dist"][-1] < 0.6 * untrained["eval/final_dist"][-1]
    assert learnt["eval/time_near_goal"][-1] > 2 * untrained["eval/time_near_goal"][-1]
