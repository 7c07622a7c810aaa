"""Networks, energies and losses against plain float64 numpy, written out here a second time."""

import dataclasses
import functools
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.stats
from helpers import choices, draw, numpy_dense, numpy_log_prob, numpy_mlp, numpy_policy

import crl_jax
from crl_jax import (
    Args,
    actor_loss,
    alpha_loss,
    contrastive_loss,
    critic_loss,
    energy,
    make_networks,
    sample_action,
    total_loss,
)

pytestmark = pytest.mark.quick
BATCH, REPR = 7, 5
ENERGIES, LOSSES = choices("crl_jax", "energy"), choices("crl_jax", "contrastive_loss")


# ---- energies and contrastive losses ---------------------------------------------------------------------------------


def numpy_energy(name, phi, psi):
    phi, psi = np.float64(phi), np.float64(psi)
    if name == "norm":
        return -np.sqrt(np.sum((phi - psi) ** 2) + 1e-6)
    if name == "l2":
        return -np.sum((phi - psi) ** 2)
    assert name == "dot"
    return np.dot(phi, psi)


def energy_of_rows(name, phi, psi):
    return energy(name, phi, psi, (phi * psi).sum(-1))


def energy_of_pairs(name, phi, psi):
    return energy(name, phi[:, None], psi, phi @ psi.T)


def numpy_logits(name, phi, psi):
    return np.array([[numpy_energy(name, p, q) for q in psi] for p in phi])


def numpy_lse(x):
    return np.log(np.sum(np.exp(x)))


def numpy_goals(own, commanded, random_share, commanded_share):
    """Of a batch the first rows are other rows' goals, the last commanded ones, all others their own."""
    goals, size = own.copy(), len(own)
    for i in range(size):
        if i < size * random_share:
            goals[i] = own[(i + 1) % size]
        if size - i <= np.floor(size * commanded_share + 1e-9):
            goals[i] = commanded[i]
    return goals


def numpy_loss(name, logits):
    n = len(logits)
    rows = np.mean([numpy_lse(logits[i]) - logits[i, i] for i in range(n)])
    columns = np.mean([numpy_lse(logits[:, i]) - logits[i, i] for i in range(n)])
    if name == "fwd_infonce":
        return rows
    if name == "bwd_infonce":
        return columns
    if name == "sym_infonce":
        return rows + columns
    assert name == "binary_nce"
    probability = 1 / (1 + np.exp(-logits))
    terms = [-np.log(probability[i, j] if i == j else 1 - probability[i, j]) for i in range(n) for j in range(n)]
    return np.sum(terms) / n  # a mean over rows, as the others are


@pytest.mark.parametrize("name", ENERGIES)
def test_energies(name):
    for scale in (0.1, 1.0, 10.0):
        phi, psi = draw(BATCH, REPR, seed=1, scale=scale), draw(BATCH, REPR, seed=2, scale=scale)
        expected = numpy_logits(name, phi, psi)
        np.testing.assert_allclose(energy_of_pairs(name, phi, psi), expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(energy_of_rows(name, phi, psi), np.diag(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ENERGIES)
def test_energies_of_equal_representations_have_finite_gradients(name):
    phi = draw(BATCH, REPR)
    gradient = jax.grad(lambda x: energy_of_pairs(name, x, phi).sum() + energy_of_rows(name, x, phi).sum())(phi)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", LOSSES)
def test_contrastive_losses(name):
    """They are as written out above; they raise the diagonal and lower the rest."""
    logits = draw(BATCH, BATCH, scale=3)
    loss, gradient = jax.value_and_grad(functools.partial(contrastive_loss, name))(logits)
    np.testing.assert_allclose(loss, numpy_loss(name, np.float64(logits)), rtol=1e-5)
    off_diagonal = ~np.eye(BATCH, dtype=bool)
    assert (np.diag(gradient) < 0).all() and (np.array(gradient)[off_diagonal] > 0).all()


# ---- the goals and the sum of the losses -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("random", "commanded"), [(0, 0), (1, 0), (0, 1), (0.3, 0), (0, 0.3), (0.5, 0.5), (0.2, 0.1), (0.25, 0.1)]
)
def test_goals_of_the_actor(random, commanded, monkeypatch):
    def actor_loss(params, state, goal, *others):
        practised.append(goal)
        return 0.0, 0.0

    monkeypatch.setattr(crl_jax, "actor_loss", actor_loss)
    args, networks, params, *_ = make_problem()
    own, other, practised = draw(10, 3, seed=1), draw(10, 3, seed=2), []
    shares = dict(random_goals=random, commanded_goals=commanded)
    batch = draw(10, 6, seed=3), draw(10, 2, seed=4), own, other, draw(10, seed=5)
    total_loss(params, batch, None, networks, dataclasses.replace(args, **shares))
    np.testing.assert_array_equal(practised[0], numpy_goals(own, other, random, commanded))
    assert (practised[0] is own) == (random == commanded == 0)


def test_psi_is_applied_once_where_the_actor_practises_its_own_goals():
    """XLA sees that both losses have the same goals."""
    args, networks, *inputs = make_problem()

    def flops(share):
        own = dataclasses.replace(args, random_goals=0.0, commanded_goals=share)
        gradient = jax.jit(jax.grad(functools.partial(total_loss, networks=networks, args=own), has_aux=True))
        return gradient.lower(*inputs).compile().cost_analysis()["flops"]

    products = 2 * BATCH * (3 * 16 + 16 * 16 + 16 * REPR)  # of one application of ψ
    assert flops(0.5) - flops(0.0) > products


@functools.cache
def make_problem(**flags):
    args = Args(width=16, repr_dim=REPR, batch_size=BATCH, random_goals=0.25, commanded_goals=0.4, **flags)
    networks = make_networks(args, SimpleNamespace(action_size=2))
    state, action, goal = draw(BATCH, 6, seed=1), np.tanh(draw(BATCH, 2, seed=2)), draw(BATCH, 3, seed=3)

    def init(key):
        actor, phi = networks.actor.init(key, state, goal), networks.phi.init(key, state, action)
        return {"actor": actor, "phi": phi, "psi": networks.psi.init(key, goal), "log_alpha": jnp.float32(-0.7)}

    params = jax.jit(init)(jax.random.key(0))
    batch = state, action, goal, draw(BATCH, 3, seed=5), -np.abs(draw(BATCH, seed=6))
    return args, networks, params, batch, draw(BATCH, 2, seed=4)


@pytest.fixture(scope="module")
def totals():
    """`total_loss` for every energy and contrastive loss."""

    args, networks, params, batch, noise = make_problem()

    def total(energy, loss):
        flags = dict(energy=energy, contrastive_loss=loss, logsumexp_penalty=0.3)
        return total_loss(params, batch, noise, networks, dataclasses.replace(args, **flags))

    return jax.jit(lambda: {energy: {loss: total(energy, loss) for loss in LOSSES} for energy in ENERGIES})()


@pytest.mark.parametrize("energy", ENERGIES)
@pytest.mark.parametrize("loss", LOSSES)
def test_total_loss(energy, loss, totals):
    total, metrics = totals[energy][loss]
    args, _, params, (state, action, goal, commanded, log_mass), noise = make_problem()
    actor_goal = numpy_goals(goal, commanded, args.random_goals, args.commanded_goals)
    phi, psi = numpy_mlp(params["phi"], state, action), numpy_mlp(params["psi"], goal)
    mean, std = numpy_policy(numpy_mlp(params["actor"], state, actor_goal))
    u = mean + std * noise
    log_prob = numpy_log_prob(mean, std, u)
    policy_phi, policy_psi = numpy_mlp(params["phi"], state, np.tanh(u)), numpy_mlp(params["psi"], actor_goal)

    logits = numpy_logits(energy, phi, psi) - log_mass[:, None]
    lse = np.array([numpy_lse(row) for row in logits])
    alpha = np.exp(-0.7)
    expected = {
        "critic": numpy_loss(loss, logits) + 0.3 * np.mean(lse**2),
        "actor": np.mean(alpha * log_prob - np.diag(numpy_logits(energy, policy_phi, policy_psi))),
        "alpha_loss": alpha * (-np.mean(log_prob) - args.target_entropy * 2),
        "alpha": alpha,
        "entropy": -np.mean(log_prob),
        "categorical_accuracy": np.mean([np.argmax(row) == i for i, row in enumerate(logits)]),
        "logits_pos": np.mean(np.diag(logits)),
        "logits_neg": np.mean(logits[~np.eye(BATCH, dtype=bool)]),
        "logsumexp": np.mean(lse),
    }
    assert metrics.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(metrics[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    sum_of_losses = expected["critic"] + expected["actor"] + expected["alpha_loss"]
    np.testing.assert_allclose(total, sum_of_losses, rtol=1e-4, atol=1e-5)


def test_each_loss_trains_its_own_parameters_only():
    """The gradient of the sum is that of one loss for each network, with all other parameters as constants."""
    args, networks, params, batch, noise = make_problem()
    state, action, goal, commanded, log_mass = batch
    actor_goal = numpy_goals(goal, commanded, args.random_goals, args.commanded_goals)

    def critic(phi, psi):
        return critic_loss(params | {"phi": phi, "psi": psi}, state, action, goal, log_mass, networks, args)[0]

    def actor(own):
        return actor_loss(params | {"actor": own}, state, actor_goal, noise, networks, args)

    def alpha(own):
        return alpha_loss(params | {"log_alpha": own}, actor(params["actor"])[1], args.target_entropy * 2)

    @jax.jit
    def gradients(params):
        together = jax.grad(lambda params: total_loss(params, batch, noise, networks, args)[0])(params)
        phi, psi = jax.grad(critic, argnums=(0, 1))(params["phi"], params["psi"])
        own = {"actor": jax.grad(lambda x: actor(x)[0])(params["actor"]), "phi": phi, "psi": psi}
        return together, own | {"log_alpha": jax.grad(alpha)(params["log_alpha"])}

    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), *gradients(params))


def test_contrastive_learning_finds_the_pairs():
    """The critic alone, on states whose goal is a known function of them, learns to tell the goals apart."""
    args, networks, params, *_ = make_problem()
    state, action, optimizer = draw(64, 6, seed=5), np.tanh(draw(64, 2, seed=6)), optax.adam(3e-3)

    @jax.jit
    def learn(params):
        def step(carry, _):
            gradient, metrics = jax.grad(critic_loss, has_aux=True)(
                carry[0], state, action, state[:, :3], jnp.zeros(64), networks, args
            )
            updates, opt_state = optimizer.update(gradient, carry[1])
            return (optax.apply_updates(carry[0], updates), opt_state), metrics["categorical_accuracy"]

        return jax.lax.scan(step, (params, optimizer.init(params)), length=300)[1]

    accuracy = learn(params)
    assert accuracy[0] < 0.2 < 0.8 < accuracy[-1]


# ---- the policy ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("raw_mean", "raw_log_std"), [(0.0, 0.0), (1.5, 0.3), (-0.5, -0.4)])
def test_action_density_integrates_to_one(raw_mean, raw_log_std):
    """log_prob, as a function of the action, is the logarithm of a density on (-1, 1)."""
    out = jnp.array([raw_mean, raw_log_std])
    actions, log_probs = jax.vmap(sample_action, (None, 0))(out, jax.random.normal(jax.random.key(0), (50_000, 1)))
    actions, log_probs = np.float64(actions[:, 0]), np.float64(log_probs)
    order = np.argsort(actions)
    actions, density = actions[order], np.exp(log_probs[order])
    assert scipy.integrate.trapezoid(density, actions) == pytest.approx(1, abs=0.01)
    mean, std = numpy_policy(out)
    u = np.arctanh(actions)
    inside = np.abs(actions) < 0.999  # beyond, arctanh of a float32 is the inaccurate side
    reference = scipy.stats.norm.logpdf(u, mean, std) - np.log1p(-(actions**2))
    np.testing.assert_allclose(np.log(density[inside]), reference[inside], rtol=1e-3, atol=1e-3)


def test_log_prob_is_exact_where_tanh_saturates():
    out, noise = jnp.array([[mean, -3.0] for mean in (-40.0, -12.0, 12.0, 40.0)]), jnp.full((4, 1), -0.7)
    _, log_prob = sample_action(out, noise)
    mean, std = map(np.longdouble, numpy_policy(out))
    np.testing.assert_allclose(log_prob, np.float64(numpy_log_prob(mean, std, mean + std * -0.7)), rtol=1e-5)
    assert np.isfinite(jax.grad(lambda out: sample_action(out, noise)[1].sum())(out)).all()


def test_log_std_stays_in_its_range():
    out = jnp.array([0.0, 0.0, 0.0, -100.0, 0.0, 100.0])
    action, _ = sample_action(out, jnp.full(3, 0.1))
    np.testing.assert_allclose(np.log(np.arctanh(np.float64(action)) / 0.1), [-5.0, -1.5, 2.0], atol=1e-3)


# ---- networks --------------------------------------------------------------------------------------------------------


def network_of(**flags):
    return make_networks(Args(**flags, repr_dim=REPR), SimpleNamespace(action_size=1)).psi


def test_residual_blocks_are_stacked_and_equal_a_loop_over_them():
    x = draw(3, 4)
    network = network_of(width=8, depth=12, residual=True, layer_norm=True, activation="swish")
    params = jax.jit(network.init)(jax.random.key(0), x)
    stacked = params["params"]["ScanResidualBlock_0"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(stacked)} == {3}
    assert not np.allclose(stacked["Layer_0"]["Dense_0"]["kernel"][0], stacked["Layer_0"]["Dense_0"]["kernel"][1])

    def layer(p, x):
        x = numpy_dense(p["Dense_0"], x)
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * np.float64(p["LayerNorm_0"]["scale"]) + np.float64(p["LayerNorm_0"]["bias"])
        return x / (1 + np.exp(-x))

    h = layer(params["params"]["Layer_0"], np.float64(x))
    for block in range(3):
        y = h
        for i in range(4):
            y = layer(jax.tree.map(lambda leaf: leaf[block], stacked[f"Layer_{i}"]), y)
        h = h + y
    np.testing.assert_allclose(
        network.apply(params, x), numpy_dense(params["params"]["Dense_0"], h), rtol=1e-3, atol=1e-4
    )


def test_depth_of_plain_networks():
    """Against numpy, whose layers are as many as there are parameters."""
    x = draw(3, 4)
    for depth in (1, 3):
        network = network_of(width=8, depth=depth)
        params = network.init(jax.random.key(0), x)
        assert len(params["params"]) == depth + 1
        np.testing.assert_allclose(network.apply(params, x), numpy_mlp(params, x), rtol=1e-4, atol=1e-5)


def test_depth_costs_no_code():
    """64 layers are as long a program as 8: the blocks are scanned, not unrolled."""

    x = draw(3, 4)

    def instructions(depth):
        network = network_of(depth=depth, residual=True, layer_norm=True)
        params = jax.eval_shape(network.init, jax.random.key(0), x)
        gradient = jax.grad(lambda params: network.apply(params, x).sum())
        return jax.jit(gradient).lower(params).as_text().count("\n")

    assert instructions(64) == instructions(8)
