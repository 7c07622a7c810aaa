"""Networks, energies and losses against plain float64 numpy, written out here a second time."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.integrate
import scipy.stats

from crl_jax import (
    CONTRASTIVE_LOSSES,
    ENERGIES,
    MLP,
    Args,
    Networks,
    action_distribution,
    crl_loss,
    energy_of_pairs,
    energy_of_rows,
    sample_action,
)

BATCH, REPR = 7, 5


def draw(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def numpy_energy(name, phi, psi):
    phi, psi = np.float64(phi), np.float64(psi)
    if name == "norm":
        return -np.sqrt(np.sum((phi - psi) ** 2) + 1e-6)
    if name == "l2":
        return -np.sum((phi - psi) ** 2)
    if name == "dot":
        return np.dot(phi, psi)
    assert name == "cosine"
    return np.dot(phi, psi) / (np.linalg.norm(phi) * np.linalg.norm(psi))


def numpy_logits(name, phi, psi):
    return np.array([[numpy_energy(name, p, q) for q in psi] for p in phi])


def numpy_lse(x):
    return np.log(np.sum(np.exp(x)))


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


@pytest.mark.parametrize("scale", [0.1, 1.0, 10.0])
@pytest.mark.parametrize("name", ENERGIES)
def test_energies(name, scale):
    phi, psi = draw(BATCH, REPR, seed=1, scale=scale), draw(BATCH, REPR, seed=2, scale=scale)
    expected = numpy_logits(name, phi, psi)
    np.testing.assert_allclose(energy_of_pairs(name, phi, psi), expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(energy_of_rows(name, phi, psi), np.diag(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ENERGIES)
def test_energies_of_equal_representations_have_finite_gradients(name):
    phi = draw(BATCH, REPR)
    gradient = jax.grad(lambda x: energy_of_pairs(name, x, phi).sum() + energy_of_rows(name, x, phi).sum())(phi)
    assert np.isfinite(gradient).all()


@pytest.mark.parametrize("name", CONTRASTIVE_LOSSES)
def test_contrastive_losses(name):
    logits = draw(BATCH, BATCH, scale=3)
    np.testing.assert_allclose(CONTRASTIVE_LOSSES[name](logits), numpy_loss(name, np.float64(logits)), rtol=1e-5)


@pytest.mark.parametrize("name", CONTRASTIVE_LOSSES)
def test_contrastive_losses_raise_the_diagonal_and_lower_the_rest(name):
    gradient = np.array(jax.grad(CONTRASTIVE_LOSSES[name])(draw(BATCH, BATCH)))
    off_diagonal = ~np.eye(BATCH, dtype=bool)
    assert (np.diag(gradient) < 0).all() and (gradient[off_diagonal] > 0).all()


def make_problem(**flags):
    args = Args(width=16, repr_dim=REPR, batch_size=BATCH, **flags)
    networks = Networks(MLP(args, 4), MLP(args, REPR), MLP(args, REPR))
    state, action, goal = map(
        jnp.array, (draw(BATCH, 6, seed=1), np.tanh(draw(BATCH, 2, seed=2)), draw(BATCH, 3, seed=3))
    )
    key = jax.random.key(0)
    params = {
        "actor": networks.actor.init(key, state, goal),
        "phi": networks.phi.init(key, state, action),
        "psi": networks.psi.init(key, goal),
        "log_alpha": jnp.float32(-0.7),
    }
    return args, networks, params, (state, action, goal), draw(BATCH, 2, seed=4)


@pytest.mark.parametrize("energy", ENERGIES)
@pytest.mark.parametrize("loss", CONTRASTIVE_LOSSES)
def test_crl_loss(energy, loss):
    args, networks, params, batch, noise = make_problem(
        energy=energy, contrastive_loss=loss, logsumexp_penalty=0.3, random_goals=0.4
    )
    total, metrics = jax.jit(lambda *x: crl_loss(*x, networks, args))(params, batch, noise)
    state, action, goal = batch
    phi = networks.phi.apply(params["phi"], state, action)
    psi = networks.psi.apply(params["psi"], goal)
    row = jnp.array([1, 2, 3, 3, 4, 5, 6])  # 0.4 of 7 rows, rounded up
    policy_action, log_prob = sample_action(networks.actor.apply(params["actor"], state, goal[row]), noise)
    policy_phi = networks.phi.apply(params["phi"], state, policy_action)

    logits = numpy_logits(energy, phi, psi)
    lse = np.array([numpy_lse(row) for row in logits])
    log_prob = np.float64(log_prob)
    alpha = np.exp(-0.7)
    expected = {
        "critic": numpy_loss(loss, logits) + 0.3 * np.mean(lse**2),
        "actor": np.mean(alpha * log_prob - np.diag(numpy_logits(energy, policy_phi, psi[row]))),
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
    np.testing.assert_allclose(
        total, expected["critic"] + expected["actor"] + expected["alpha_loss"], rtol=1e-4, atol=1e-5
    )


def test_each_loss_moves_its_own_parameters_only():
    args, networks, params, batch, noise = make_problem(contrastive_loss="fwd_infonce")
    state, action, goal = batch

    def critic_loss(phi_params, psi_params):
        logits = energy_of_pairs(
            "norm", networks.phi.apply(phi_params, state, action), networks.psi.apply(psi_params, goal)
        )
        lse = jax.nn.logsumexp(logits, axis=1)
        return jnp.mean(lse - jnp.diag(logits)) + args.logsumexp_penalty * jnp.mean(lse**2)

    def actor_loss(actor_params):
        policy_action, log_prob = sample_action(networks.actor.apply(actor_params, state, goal), noise)
        phi, psi = networks.phi.apply(params["phi"], state, policy_action), networks.psi.apply(params["psi"], goal)
        return jnp.mean(jnp.exp(params["log_alpha"]) * log_prob - energy_of_rows("norm", phi, psi))

    def alpha_loss(log_alpha):
        _, log_prob = sample_action(networks.actor.apply(params["actor"], state, goal), noise)
        return jnp.exp(log_alpha) * (-jnp.mean(log_prob) - args.target_entropy * 2)

    gradient = jax.grad(lambda params: crl_loss(params, batch, noise, networks, args)[0])(params)
    phi_gradient, psi_gradient = jax.grad(critic_loss, argnums=(0, 1))(params["phi"], params["psi"])
    expected = {
        "actor": jax.grad(actor_loss)(params["actor"]),
        "phi": phi_gradient,
        "psi": psi_gradient,
        "log_alpha": jax.grad(alpha_loss)(params["log_alpha"]),
    }
    jax.tree.map(lambda x, y: np.testing.assert_allclose(x, y, rtol=1e-4, atol=1e-6), gradient, expected)


@pytest.mark.parametrize(("raw_mean", "raw_log_std"), [(0.0, 0.0), (1.5, 0.3), (-0.5, -0.4)])
def test_action_density_integrates_to_one(raw_mean, raw_log_std):
    """log_prob, as a function of the action, is the logarithm of a density on (-1, 1)."""
    out = jnp.array([raw_mean, raw_log_std])
    actions, log_probs = jax.vmap(sample_action, (None, 0))(out, jax.random.normal(jax.random.key(0), (50_000, 1)))
    actions, log_probs = np.float64(actions[:, 0]), np.float64(log_probs)
    order = np.argsort(actions)
    actions, density = actions[order], np.exp(log_probs[order])
    assert scipy.integrate.trapezoid(density, actions) == pytest.approx(1, abs=0.01)
    mean, log_std = (float(x[0]) for x in action_distribution(out))
    u = np.arctanh(actions)
    inside = np.abs(actions) < 0.999  # beyond, arctanh of a float32 is the inaccurate side
    reference = scipy.stats.norm.logpdf(u, mean, np.exp(log_std)) - np.log1p(-(actions**2))
    np.testing.assert_allclose(np.log(density[inside]), reference[inside], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("mean", [-40.0, -12.0, 12.0, 40.0])
def test_log_prob_is_exact_where_tanh_saturates(mean):
    out, noise = jnp.array([mean, -3.0]), jnp.array([-0.7])
    _, log_prob = sample_action(out, noise)
    log_std = np.float64(action_distribution(out)[1][0])
    u = np.longdouble(mean + np.exp(log_std) * np.float64(noise[0]))
    log_one_minus_tanh_sq = -2 * (np.logaddexp(u, -u) - np.log(np.longdouble(2)))  # 1 - tanh² = 1 / cosh²
    assert log_prob == pytest.approx(
        float(scipy.stats.norm.logpdf(noise[0]) - log_std - log_one_minus_tanh_sq), rel=1e-5
    )
    gradient = jax.grad(lambda out: sample_action(out, noise)[1])(out)
    assert np.isfinite(gradient).all()


def test_log_std_stays_in_its_range():
    out = jnp.array([0.0, 0.0, 0.0, -100.0, 0.0, 100.0])
    np.testing.assert_allclose(action_distribution(out)[1], [-5.0, -1.5, 2.0], atol=1e-5)


def count_layers(params):
    return len(jax.tree.leaves(params)) // 2


def test_network_shapes():
    x = jnp.ones((3, 4))
    args = Args(width=16, depth=3)
    params = MLP(args, 5).init(jax.random.key(0), x)
    assert MLP(args, 5).apply(params, x).shape == (3, 5)
    assert count_layers(params) == 3 + 1
    assert count_layers(MLP(dataclasses.replace(args, layer_norm=True), 5).init(jax.random.key(0), x)) == 2 * 3 + 1


def test_residual_blocks_are_stacked_and_equal_a_loop_over_them():
    x = draw(3, 4)
    args = Args(width=8, depth=12, residual=True, layer_norm=True, activation="swish")
    network = MLP(args, 5)
    params = network.init(jax.random.key(0), x)
    stacked = params["params"]["ScanResidualBlock_0"]
    assert {leaf.shape[0] for leaf in jax.tree.leaves(stacked)} == {3}
    assert not np.allclose(stacked["Layer_0"]["Dense_0"]["kernel"][0], stacked["Layer_0"]["Dense_0"]["kernel"][1])

    def layer(p, x):
        x = x @ np.float64(p["Dense_0"]["kernel"]) + np.float64(p["Dense_0"]["bias"])
        x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
        x = x * np.float64(p["LayerNorm_0"]["scale"]) + np.float64(p["LayerNorm_0"]["bias"])
        return x / (1 + np.exp(-x))

    h = layer(params["params"]["Layer_0"], np.float64(x))
    for block in range(3):
        y = h
        for i in range(4):
            y = layer(jax.tree.map(lambda leaf: leaf[block], stacked[f"Layer_{i}"]), y)
        h = h + y
    dense = params["params"]["Dense_0"]
    expected = h @ np.float64(dense["kernel"]) + np.float64(dense["bias"])
    np.testing.assert_allclose(network.apply(params, x), expected, rtol=1e-3, atol=1e-4)


def test_depth_costs_no_compiled_code():
    """64 layers compile to about as much code as 8: the blocks are scanned, not unrolled."""

    def instructions(depth):
        args, networks, params, batch, noise = make_problem(depth=depth, residual=True, layer_norm=True)
        gradient = jax.grad(lambda params: crl_loss(params, batch, noise, networks, args)[0])
        return jax.jit(gradient).lower(params).compile().as_text().count("\n")

    assert instructions(64) < 1.1 * instructions(8)


@pytest.mark.parametrize("activation", ["swish", "relu"])
def test_contrastive_learning_finds_the_pairs(activation):
    """The critic alone, on states whose goal is a known function of them, learns to tell the goals apart."""
    args, networks, params, *_ = make_problem(activation=activation)
    state = draw(64, 6, seed=5)
    batch, noise = (state, np.tanh(draw(64, 2, seed=6)), jnp.array(state[:, :3])), draw(64, 2, seed=7)
    optimizer = optax.adam(3e-3)

    @jax.jit
    def learn(params):
        def step(carry, _):
            gradient, metrics = jax.grad(crl_loss, has_aux=True)(carry[0], batch, noise, networks, args)
            updates, opt_state = optimizer.update(gradient, carry[1])
            return (optax.apply_updates(carry[0], updates), opt_state), metrics

        return jax.lax.scan(step, (params, optimizer.init(params)), length=300)[1]

    metrics = learn(params)
    assert metrics["categorical_accuracy"][0] < 0.2 < 0.8 < metrics["categorical_accuracy"][-1]
