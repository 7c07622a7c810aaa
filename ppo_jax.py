"""Proximal policy optimisation (PPO), goal-conditioned: improve the policy a little on what it has just done.

A rollout of the present policy π_old is used for a few epochs and thrown away. How much better than expected an action
turned out is its advantage, estimated from the value function V(s, g) by generalised advantage estimation:

    δ_t = r_t + γ (1 - terminated_t) V(s'_t, g) - V(s_t, g)             A_t = δ_t + γ λ (1 - done_t) A_{t+1}

where s'_t is the state that the action led to, before any reset: an episode that is cut off by its length (done, but
not terminated) is bootstrapped as if it went on. The policy follows the advantage as long as its probabilities stay
close to the old ones, the value its own target, and a bonus keeps the policy random:

    ρ = π(a | s, g) / π_old(a | s, g)
    L(π) = -mean( min( ρ Â, clip(ρ, 1 - ε, 1 + ε) Â ) ) + β · mean( log π(a' | s, g) ),  a' ~ π(· | s, g)
    L(V) = mean( (V(s, g) - (A + V_old(s, g)))² )

Â is A, normalised to mean 0 and standard deviation 1 in each minibatch (--no-normalize-advantage: A itself); A is 0
after the rollout's last step. (s, g) is normalised by its mean and deviation so far (--no-normalize-observations: not),
and the gradients of π and of V are each clipped to a norm of --max-grad-norm.

PPO learns from the rewards that it meets. With a sparse one it has to meet goals by chance; --dense-reward shows it the
way.

Papers: Schulman et al. 2017 (arXiv 1707.06347) and 2016 (arXiv 1506.02438, advantages), Bortkiewicz et al. 2025 (arXiv
2408.11052, the benchmark).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.nn import softplus

import envs
import harness
from envs import running_statistics  # brax's


@dataclass(frozen=True)
class Args(harness.RunArgs):  # --seed, --resume and what else is not about the algorithm
    # task
    env_id: str = "reacher"  # task, one of envs.ENV_IDS, or a class of your own, module:Class
    layout: str | None = None  # of a maze: rows with spaces between, of # walls, r starts, g goals, b balls and . floor
    eval_env_id: str | None = None  # another task to evaluate on, say a maze of another layout; None: env_id
    backend: str | None = None  # physics; None: the task's own on this machine, see docs/environments.md
    action_chunk: int = 1  # actions picked at once, without looking; one step for the losses, whose γ is gamma^chunk

    # budget, in single steps
    total_timesteps: int = 500_000  # environment steps of the run, rounded up to whole epochs
    num_envs: int = 256  # environments stepped in parallel
    episode_length: int | None = None  # steps until an episode is truncated; None: the task's own
    unroll_length: int = 25  # steps of each environment between updates, rounded up to whole chunks and minibatches
    num_evals: int = 20  # evaluations at most, evenly spaced; the time between two is an epoch
    num_eval_envs: int = 128  # episodes of an evaluation
    eval_noise: float = 1.0  # noise of evaluated actions, in standard deviations: 1 samples the policy, 0 is its mean

    # algorithm
    dense_reward: bool = False  # the task's shaped reward instead of 1 near the goal and 0 elsewhere
    gamma: float = 0.97  # discount of rewards to come
    gae_lambda: float = 0.95  # λ of the advantages: 0 takes one reward and then the value, 1 all of the unroll's
    update_epochs: int = 4  # times that a rollout is learnt from
    num_minibatches: int = 8  # parts into which a rollout is split, an update each
    clip_eps: float = 0.2  # ε, how far from 1 a ratio of probabilities may go until no more is gained
    entropy_coef: float = 1e-3  # weight β of the entropy bonus
    normalize_advantage: bool = True  # to mean 0 and standard deviation 1 in each minibatch
    normalize_observations: bool = True  # by mean and standard deviation in all rollouts before
    learning_rate: float = 3e-4  # Adam's learning rate
    anneal_lr: bool = False  # let learning rates fall linearly, to 0 at the end of the run
    max_grad_norm: float = 0.5  # each network's gradient is clipped to this norm

    # networks
    width: int = 256  # units of a hidden layer
    depth: int = 2  # hidden layers of the actor and of the critic; with residual a multiple of 4
    activation: Literal["relu", "swish"] = "relu"  # nonlinearity of the hidden layers
    layer_norm: bool = False  # normalise each hidden layer; deep networks need it
    residual: bool = False  # residual blocks of 4 hidden layers, behind one more layer that widens the input

    def __post_init__(self):
        super().__post_init__()
        harness.check((self.gamma > 0) & (self.gamma < 1), "--gamma must lie between 0 and 1, both excluded")
        harness.check(self.gae_lambda <= 1, "--gae-lambda must lie between 0 and 1")
        harness.check((self.clip_eps > 0) & (self.max_grad_norm > 0), "--clip-eps and --max-grad-norm must be positive")
        harness.check(not self.residual or self.depth % 4 == 0, "--depth must be a multiple of 4 with --residual")


# ---- networks --------------------------------------------------------------------------------------------------------


class Layer(nn.Module):
    width: int
    activation: str
    layer_norm: bool

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.width, kernel_init=nn.initializers.lecun_uniform())(x)
        return getattr(nn, self.activation)(nn.LayerNorm()(x) if self.layer_norm else x)


class ResidualBlock(nn.Module):
    layer: Callable[[], Layer]

    @nn.compact
    def __call__(self, x, _):
        return x + nn.Sequential([self.layer() for _ in range(4)])(x), None


class MLP(nn.Module):
    layer: Callable[[], Layer]
    depth: int
    residual: bool
    out_dim: int

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        if self.residual:
            x = self.layer()(x)
            # One block is compiled and scanned over stacked parameters, however deep the network is.
            over_blocks = dict(variable_axes={"params": 0}, split_rngs={"params": True}, length=self.depth // 4)
            x, _ = nn.scan(ResidualBlock, **over_blocks)(self.layer)(x, None)
        else:
            x = nn.Sequential([self.layer() for _ in range(self.depth)])(x)
        return nn.Dense(self.out_dim, kernel_init=nn.initializers.lecun_uniform())(x)


class Networks(NamedTuple):
    actor: MLP  # π: (state, goal) -> mean and raw log-std
    critic: MLP  # V: (state, goal) -> value


def make_networks(args, env):
    mlp = partial(MLP, partial(Layer, args.width, args.activation, args.layer_norm), args.depth, args.residual)
    return Networks(mlp(2 * env.action_size), mlp(1))


def action_distribution(actor_out):
    """Mean and log-std, (..., action_dim) each, of the Gaussian whose tanh is the action."""
    mean, log_std = jnp.split(actor_out, 2, axis=-1)
    return mean, -5 + 3.5 * (jnp.tanh(log_std) + 1)  # between -5 and 2


def log_prob_of(actor_out, u):
    """The logarithm of the probability density, (...,), of the action tanh(u), u (..., action_dim)."""
    mean, log_std = action_distribution(actor_out)
    log_prob = -0.5 * ((u - mean) / jnp.exp(log_std)) ** 2 - log_std - 0.5 * math.log(2 * math.pi)
    log_prob -= 2 * (math.log(2) - u - softplus(-2 * u))  # log(1 - tanh(u)²), exact also where tanh saturates
    return log_prob.sum(-1)


def sample_u(actor_out, noise):
    """u, (..., action_dim) as the noise, whose tanh is an action; u itself, since tanh loses digits where it saturates.

    Standard normal noise samples the policy, 0 takes its mean.
    """
    mean, log_std = action_distribution(actor_out)
    return mean + jnp.exp(log_std) * noise


# ---- advantages and losses -------------------------------------------------------------------------------------------


class Transition(NamedTuple):
    obs: jax.Array  # (..., observation_size)
    u: jax.Array  # the action before its tanh, (..., action_dim)
    log_prob: jax.Array  # of the action when it was taken, (...,)
    reward: jax.Array  # (...,)
    next_obs: jax.Array  # what the action led to, before any reset
    terminated: jax.Array  # 1 where the task itself ended the episode, (...,)
    done: jax.Array  # 1 where the episode ended, by itself or by its length, (...,)


def advantages_of(transitions, value, next_value, gamma, gae_lambda):
    """Generalised advantage estimates, (time, ...), of a rollout and its values V(s_t, g) and V(s'_t, g)."""
    delta = transitions.reward + gamma * (1 - transitions.terminated) * next_value - value

    def backwards(advantage, inputs):
        delta, done = inputs
        advantage = delta + gamma * gae_lambda * (1 - done) * advantage
        return advantage, advantage

    return jax.lax.scan(backwards, jnp.zeros_like(delta[0]), (delta, transitions.done), reverse=True)[1]


class Minibatch(NamedTuple):
    obs: jax.Array  # normalised, (batch, observation_size)
    u: jax.Array  # (batch, action_dim)
    log_prob: jax.Array  # (batch,), as the others
    advantage: jax.Array
    target_value: jax.Array


def actor_loss(params, batch, noise, networks, args):
    """L(π) of a `Minibatch`, and metrics; standard normal noise, (batch, action_dim), picks actions for its entropy."""
    advantage = batch.advantage
    if args.normalize_advantage:
        everyone = jax.lax.all_gather(advantage, args.axes, tiled=True)  # on all devices
        advantage = (advantage - everyone.mean()) / (everyone.std() + 1e-8)
    actor_out = networks.actor.apply(params["actor"], batch.obs)
    log_ratio = log_prob_of(actor_out, batch.u) - batch.log_prob
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - args.clip_eps, 1 + args.clip_eps)
    entropy = -jnp.mean(log_prob_of(actor_out, sample_u(actor_out, noise)))
    loss = -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage)) - args.entropy_coef * entropy
    return loss, {
        "actor": loss,
        "entropy": entropy,
        "approx_kl": jnp.mean(ratio - 1 - log_ratio),
        "clip_fraction": jnp.mean(jnp.abs(ratio - 1) > args.clip_eps),
    }


def critic_loss(params, batch, networks):
    """L(V) of a `Minibatch`, and metrics."""
    value = networks.critic.apply(params["critic"], batch.obs)[..., 0]
    loss = jnp.mean((value - batch.target_value) ** 2)
    return loss, {"critic": loss, "value": jnp.mean(value)}


def total_loss(params, batch, noise, networks, args):
    """The sum of the two, each of which trains its own parameters alone, and a dict of scalars to log."""
    actor, actor_metrics = actor_loss(params, batch, noise, networks, args)
    critic, critic_metrics = critic_loss(params, batch, networks)
    return actor + critic, critic_metrics | actor_metrics


# ---- training --------------------------------------------------------------------------------------------------------


class Schedule(NamedTuple):
    unroll_length: int  # actions of each environment
    steps_per_iteration: int  # single steps, over all environments
    updates_per_iteration: int
    warmup_iterations: int  # without updates
    iterations_per_epoch: int
    num_epochs: int
    num_updates: int  # over which learning rates fall: without those that fill up the last epoch


def make_schedule(args):
    steps_per_action = args.num_envs * args.action_chunk
    unit = args.num_minibatches // math.gcd(args.num_minibatches, args.num_envs // args.num_devices)
    unroll = math.ceil(args.unroll_length / (args.action_chunk * unit)) * unit  # whole chunks and minibatches
    steps = unroll * steps_per_action
    updates = args.update_epochs * args.num_minibatches
    iterations = math.ceil(args.total_timesteps / steps)
    per_epoch = math.ceil(iterations / args.num_evals)
    return Schedule(unroll, steps, updates, 0, per_epoch, math.ceil(iterations / per_epoch), iterations * updates)


class RunnerState(NamedTuple):
    params: dict[str, Any]
    opt_state: optax.OptState
    statistics: running_statistics.RunningStatisticsState  # of observations, so far
    env_state: Any
    key: jax.Array
    eval_key: jax.Array  # evaluation draws from a stream of its own: training does not depend on it


def actor_output(networks, runner, obs):
    """The actor's output for observations (..., observation_size)."""
    return networks.actor.apply(runner.params["actor"], running_statistics.normalize(obs, runner.statistics))


def act(networks, runner, obs, noise):
    """Actions for observations (..., observation_size); standard normal noise samples the policy, 0 takes its mean."""
    return jnp.tanh(sample_u(actor_output(networks, runner, obs), noise))


def make_train(args, env=None, eval_env=None):
    """The whole training as two pure functions, for `jit`, and for `vmap` over seeds.

    `runner = init(key)` makes networks and environments. One scan over epochs is `runner, metrics = train(runner,
    num_epochs)`; `metrics` is a dict of arrays (num_epochs,). `env` and `eval_env` are tasks of one's own, with rewards
    of their own, instead of those that `args` names. With `--num-devices` each device calls both for its part of
    environments and minibatches.
    """
    env = env or envs.make(args.env_id, args.backend, args.dense_reward, layout=args.layout)
    env = envs.chunk(env, args.action_chunk)
    eval_env = envs.chunk(eval_env or envs.make_eval(env, args.eval_env_id), args.action_chunk)
    num_envs = args.num_envs // args.num_devices
    train_env = envs.wrap(env, num_envs, args.episode_length or env.episode_length)
    schedule, networks = make_schedule(args), make_networks(args, env)
    lr = optax.linear_schedule(args.learning_rate, 0, schedule.num_updates) if args.anneal_lr else args.learning_rate
    # Each network's gradient is clipped by itself: a large error of the values must not shrink the policy's steps.
    # Over one flat vector a step is one kernel on a GPU, instead of one for each array.
    clip = optax.flatten(optax.clip_by_global_norm(args.max_grad_norm))
    clip = optax.multi_transform({"actor": clip, "critic": clip}, {"actor": "actor", "critic": "critic"})
    optimizer = optax.chain(clip, optax.flatten(optax.adam(lr)))

    def unroll(runner):
        """Every environment takes `unroll_length` actions of the stochastic policy; returns these `Transition`s too."""

        def step(env_state, key):
            obs = env_state.obs
            actor_out = actor_output(networks, runner, obs)
            u = sample_u(actor_out, jax.random.normal(key, (num_envs, env.action_size)))
            env_state = train_env.step(env_state, jnp.tanh(u))
            terminated = env_state.done - env_state.info["truncation"]
            transition = Transition(
                obs,
                u,
                log_prob_of(actor_out, u),
                env_state.reward,
                env_state.info["next_obs"],
                terminated,
                env_state.done,
            )
            return env_state, transition

        key, unroll_key = jax.random.split(runner.key)
        keys = jax.random.split(unroll_key, schedule.unroll_length)
        env_state, transitions = jax.lax.scan(step, runner.env_state, keys)
        return runner._replace(env_state=env_state, key=key), transitions

    def init(key):
        key, eval_key, env_key, actor_key, critic_key = jax.random.split(key, 5)
        if args.num_devices > 1:  # each has starts, goals and noise of its own
            device = jax.lax.axis_index(args.axes)
            key, eval_key, env_key = (jax.random.fold_in(k, device) for k in (key, eval_key, env_key))
        env_state = train_env.reset(env_key)
        obs = env_state.obs[0]
        params = {"actor": networks.actor.init(actor_key, obs), "critic": networks.critic.init(critic_key, obs)}
        opt_state, statistics = optimizer.init(params), running_statistics.init_state(obs)
        return RunnerState(params, opt_state, statistics, env_state, key, eval_key)

    def update(carry, inputs):
        params, opt_state = carry
        grads, metrics = jax.grad(total_loss, has_aux=True)(params, *inputs, networks, args)
        updates, opt_state = optimizer.update(jax.lax.pmean(grads, args.axes), opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics

    def iterate(runner, _):
        """One unroll, then several epochs of updates, each on another split into minibatches."""
        runner, transitions = unroll(runner)
        normalize = partial(running_statistics.normalize, mean_std=runner.statistics)
        obs, next_obs = normalize(transitions.obs), normalize(transitions.next_obs)
        value, next_value = (networks.critic.apply(runner.params["critic"], x)[..., 0] for x in (obs, next_obs))
        gamma = args.gamma**args.action_chunk
        advantage = advantages_of(transitions, value, next_value, gamma, args.gae_lambda)
        batch = Minibatch(obs, transitions.u, transitions.log_prob, advantage, advantage + value)
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

        def update_epoch(carry, key):
            order_key, noise_key = jax.random.split(key)
            order = jax.random.permutation(order_key, len(batch.obs))
            order = order.reshape(args.num_minibatches, -1)
            minibatches = jax.tree.map(lambda x: x[order], batch)
            return jax.lax.scan(update, carry, (minibatches, jax.random.normal(noise_key, minibatches.u.shape)))

        key, update_key = jax.random.split(runner.key)
        keys = jax.random.split(update_key, args.update_epochs)
        (params, opt_state), metrics = jax.lax.scan(update_epoch, (runner.params, runner.opt_state), keys)
        runner = runner._replace(params=params, opt_state=opt_state, key=key)
        if args.normalize_observations:
            update_statistics = partial(running_statistics.update, std_min_value=0.01, pmap_axis_name=args.axes)
            runner = runner._replace(statistics=update_statistics(runner.statistics, transitions.obs))
        return runner, jax.tree.map(jnp.mean, metrics)

    def epoch(runner, _):
        runner, losses = jax.lax.scan(iterate, runner, length=schedule.iterations_per_epoch)
        metrics, env_state = envs.train_metrics(runner.env_state, args.axes)
        metrics |= {f"losses/{name}": jnp.mean(x) for name, x in losses.items()}
        metrics["losses/param_norm"] = optax.tree.norm(runner.params)
        eval_key, key = jax.random.split(runner.eval_key)
        runner = runner._replace(env_state=env_state, eval_key=eval_key)
        policy, length = partial(act, networks, runner), args.episode_length or eval_env.episode_length
        metrics |= envs.evaluate(eval_env, policy, key, args.num_eval_envs // args.num_devices, length, args.eval_noise)
        return runner, jax.lax.pmean(metrics, args.axes)

    return init, lambda runner, num_epochs: jax.lax.scan(epoch, runner, length=num_epochs)


@harness.errors_in_one_line()
def main():
    args = harness.parse_args(Args)
    env = envs.chunk(envs.make(args.env_id, args.backend, args.dense_reward, layout=args.layout), args.action_chunk)
    eval_env = envs.make_eval(env, args.eval_env_id)
    init, train = make_train(args, env, eval_env)
    harness.run(args, env, eval_env, make_schedule(args), init, train, partial(act, make_networks(args, env)))


if __name__ == "__main__":
    main()
