"""Several devices, which conftest.py makes of the CPU: seeds side by side, and one training that they share."""

import dataclasses
import re
from collections import Counter
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers import LEARNS, SCRIPTS, Plane, draw, load, make_args

import envs
from harness.devices import runner_of, spread

COLLECTIVES = {
    # φ, ψ and log m are gathered in an update and, for the metrics, once an iteration. Statistics of what was seen are
    # reduced once an unroll.
    "crl_jax": {"all-reduce": 1 + 3, "all-gather": 6, "reduce-scatter": 2},
    "sac_her_jax": {"all-reduce": 1 + 3},
    "td3_her_jax": {"all-reduce": 2 + 3},  # the critics' and the actor's
    "ppo_jax": {"all-reduce": 1 + 2, "all-gather": 1},  # of advantages
}


@pytest.mark.parametrize("script", SCRIPTS)
def test_devices_that_share_a_training_learn(script):
    """To slide to goals in a square. Their parameters stay alike, their environments do not."""
    args = make_args(script, num_devices=2, **LEARNS)
    module, env = load(script), Plane(dense_reward=script == "ppo_jax")
    key, init, train = spread(args, *module.make_train(args, env))
    runner = jax.jit(init)(key)
    program = jax.jit(lambda runner: train(runner, 1)).lower(runner).compile()
    runner, metrics = program(runner)
    assert metrics["eval/time_near_goal"].shape == (1,)
    assert metrics["eval/time_near_goal"][0] > 0.5
    shared = runner.params, runner.statistics
    jax.tree.map(lambda x: np.testing.assert_array_equal(x[0], x[1]), shared)
    assert np.all(np.any(runner.env_state.obs[0] != runner.env_state.obs[1], axis=-1))
    policy = partial(module.act, module.make_networks(args, env), runner_of(args, runner, 0))
    assert envs.evaluate(env, policy, jax.random.key(0), 64, 30)["eval/time_near_goal"] > 0.5
    # In its loops nothing travels but the gradients of an update, all at once, what a loss needs of all devices, and
    # statistics.
    loops = [block for block in program.as_text().split("\n\n") if not block.startswith("ENTRY")]
    calls = Counter(re.findall(r" (all-\w+|reduce-scatter|collective-\w+)\(", "\n".join(loops)))
    assert calls == COLLECTIVES[script]


@pytest.mark.parametrize("script", SCRIPTS)
def test_seeds_over_devices_are_those_of_one(script):
    small = make_args(script, num_seeds=4, num_envs=4, total_timesteps=200, num_evals=2)
    module, env = load(script), Plane()

    def run(args, key, init, train):
        return jax.jit(lambda key: train(init(key), 2)[1])(key)

    init, train = module.make_train(small, env)
    metrics = run(small, *spread(small, init, train))
    assert all(len(x.sharding.device_set) == 4 for x in metrics.values())
    alone = jax.jit(lambda key: train(init(key), 2)[1])
    for i in range(4):
        for name, value in alone(jax.random.key(small.seed + i)).items():
            np.testing.assert_allclose(metrics[name][i], value, rtol=1e-3, atol=1e-6, err_msg=name)
    assert len(set(np.asarray(metrics["eval/final_dist"][:, 0]).tolist())) == 4


@pytest.mark.parametrize(("num_seeds", "devices"), [(3, 3), (5, 1), (6, 3), (8, 4)])
def test_seeds_take_as_many_devices_as_divide_them(num_seeds, devices):
    args = make_args("crl_jax", num_seeds=num_seeds)
    key, _, _ = spread(args, lambda key: key, lambda runner, num_epochs: runner)
    assert key.shape == (num_seeds,) and len(key.sharding.device_set) == devices


@pytest.mark.quick
def test_gradient_over_devices_is_that_of_the_whole_batch():
    """CRL's rows have the goals of all devices as negatives."""
    crl_jax = load("crl_jax")
    args = make_args("crl_jax", num_envs=4, num_eval_envs=4, width=8, repr_dim=4)
    networks = crl_jax.make_networks(args, Plane())
    rows = [*(jnp.asarray(draw(8, 2, seed=i)) for i in range(3)), draw(8, seed=3)]  # states, actions, goals, log m
    params = {
        "phi": networks.phi.init(jax.random.key(0), *rows[:2]),
        "psi": networks.psi.init(jax.random.key(1), rows[2]),
    }

    def gradient(args, *rows):
        grads, metrics = jax.grad(crl_jax.critic_loss, has_aux=True)(params, *rows, networks, args)
        return jax.lax.pmean((grads, metrics), args.axes)

    whole = gradient(args, *rows)
    shared = dataclasses.replace(args, num_devices=4)
    parts = [x.reshape(4, 2, *x.shape[1:]) for x in rows]
    of_each = jax.vmap(partial(gradient, shared), axis_name="devices")(*parts)
    for i in range(4):
        jax.tree.map(lambda x, y, i=i: np.testing.assert_allclose(x[i], y, rtol=1e-5, atol=1e-6), of_each, whole)


@pytest.mark.quick
def test_ppo_normalises_over_all_devices():
    ppo_jax = load("ppo_jax")
    args = make_args("ppo_jax", normalize_advantage=True)
    networks = ppo_jax.make_networks(args, Plane())
    params = {"actor": networks.actor.init(jax.random.key(0), jnp.zeros(4))}
    batch = ppo_jax.Minibatch(draw(8, 4), draw(8, 2, seed=1), draw(8, seed=2), draw(8, seed=3), draw(8, seed=4))
    noise = draw(8, 2, seed=5)

    def loss(args, batch, noise):
        return jax.lax.pmean(ppo_jax.actor_loss(params, batch, noise, networks, args)[0], args.axes)

    shared = partial(loss, dataclasses.replace(args, num_devices=2))
    parts = jax.tree.map(lambda x: x.reshape(2, 4, *x.shape[1:]), (batch, noise))
    np.testing.assert_allclose(jax.vmap(shared, axis_name="devices")(*parts), loss(args, batch, noise), rtol=1e-5)


@pytest.mark.quick
@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (dict(num_devices=3), "--num-envs 256: --num-devices 3 must divide it"),
        (dict(num_devices=2, batch_size=3), "--batch-size 3: --num-devices 2 must divide it"),
        (dict(num_devices=2, num_eval_envs=1), "--num-eval-envs 1: --num-devices 2 must divide it"),
        (dict(num_devices=2, num_seeds=2), "choose one of them"),
        (dict(distributed=True, num_seeds=2), "--distributed trains one seed"),
        (dict(distributed=True, evaluate="run"), "--evaluate is for one process"),
    ],
)
def test_what_devices_do_not_divide_is_refused(flags, message):
    with pytest.raises(envs.UsageError, match=message):
        load("crl_jax").Args(**flags)
