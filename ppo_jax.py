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

Â is A, normalised to mean 0 and standard deviation 1 in each minibatch (--no-normalize-advantage: A itself).

PPO learns from the rewards that it meets. With a sparse one it has to meet goals by chance, as it does on reacher;
elsewhere --dense-reward shows it the way.

Papers: Schulman et al. 2017 (arXiv 1707.06347) and 2016 (arXiv 1506.02438, advantages), Bortkiewicz et al. 2025 (arXiv
2408.11052, the benchmark).
"""

import math
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.nn import softplus

import envs


@dataclass(frozen=True)
class Args(envs.RunArgs):  # --seed, --resume and what else is not about the algorithm
    # task
    env_id: str = "reacher"  # task, one of envs.ENV_IDS
    eval_env_id: str | None = None  # another task to evaluate on, say a maze of another layout; None: env_id
    backend: str | None = None  # physics; None: native MuJoCo on a CPU (most ants: spring), the benchmark's elsewhere

    # budget
    total_timesteps: int = 500_000  # environment steps of the run, rounded up to whole epochs
    num_envs: int = 256  # environments stepped in parallel
    episode_length: int | None = None  # steps until an episode is truncated; None: the task's own
    unroll_length: int = 25  # steps of each environment between two rounds of updates
    num_evals: int = 20  # evaluations at most, evenly spaced; the time between two is an epoch
    num_eval_envs: int = 128  # episodes of an evaluation
    eval_noise: float = 1.0  # noise of evaluated actions, in standard deviations: 1 samples the policy, 0 is its mean

    # algorithm
    dense_reward: bool = False  # the task's shaped reward instead of 1 near the goal and 0 elsewhere
    gamma: float = 0.97  # discount of rewards to come
    gae_lambda: float = 0.95  # λ of the advantages: 0 takes one reward and then the value, 1 all of the unroll's
    update_epochs: int = 4  # times that a rollout is learnt from
    num_minibatches: int = 8  # parts into which it is split, an update each
    clip_eps: float = 0.2  # ε, how far from 1 a ratio of probabilities may go until no more is gained
    entropy_coef: float = 1e-3  # weight β of the entropy bonus
    normalize_advantage: bool = True  # to mean 0 and standard deviation 1 in each minibatch
    normalize_observations: bool = True  # by mean and standard deviation in all rollouts before
    learning_rate: float = 3e-4  # Adam's learning rate
    anneal_lr: bool = False  # let it fall linearly, to 0 at the end of the run
    max_grad_norm: float = 0.5  # gradients are scaled down to this norm

    # networks
    width: int = 256  # units of a hidden layer
    depth: int = 2  # hidden layers of the actor and of the critic; with residual a multiple of 4
    activation: str = "relu"  # nonlinearity of the hidden layers: relu or swish
    layer_norm: bool = False  # normalise each hidden layer; deep networks need it
    residual: bool = False  # residual blocks of 4 hidden layers, behind one more layer that widens the input


# ---- networks --------------------------------------------------------------------------------------------------------

ACTIVATIONS = {"relu": nn.relu, "swish": nn.swish}
LOG_STD_RANGE = (-5.0, 2.0)


class Layer(nn.Module):
    args: Args

    @nn.compact
    def __call__(self, x):
        x = nn.Dense(self.args.width, kernel_init=nn.initializers.lecun_uniform())(x)
        return ACTIVATIONS[self.args.activation](nn.LayerNorm()(x) if self.args.layer_norm else x)


class ResidualBlock(nn.Module):
    args: Args

    @nn.compact
    def __call__(self, x, _):
        h = x
        for _ in range(4):
            h = Layer(self.args)(h)
        return x + h, None


class MLP(nn.Module):
    args: Args
    out_dim: int

    @nn.compact
    def __call__(self, *inputs):
        x = jnp.concatenate(inputs, axis=-1)
        if self.args.residual:
            x = Layer(self.args)(x)
            # One block is compiled and scanned over stacked parameters, however deep the network is.
            blocks = nn.scan(
                ResidualBlock,
                variable_axes={"params": 0},
                split_rngs={"params": True},
                length=self.args.depth // 4,
            )
            x, _ = blocks(self.args)(x, None)
        else:
            for _ in range(self.args.depth):
                x = Layer(self.args)(x)
        return nn.Dense(self.out_dim, kernel_init=nn.initializers.lecun_uniform())(x)


def action_distribution(actor_out):
    """Mean and log-std, (..., action_dim) each, of the Gaussian whose tanh is the action."""
    mean, log_std = jnp.split(actor_out, 2, axis=-1)
    low, high = LOG_STD_RANGE
    return mean, low + 0.5 * (high - low) * (jnp.tanh(log_std) + 1)


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


# ---- observation statistics ------------------------------------------------------------------------------------------


class Statistics(NamedTuple):
    """Of all observations so far."""

    count: jax.Array  # ()
    mean: jax.Array  # (observation_size,)
    variance: jax.Array  # (observation_size,)


def update_statistics(statistics, obs):
    """Merges in the observations `obs`, (..., observation_size) (Chan et al. 1979, parallel variance)."""
    obs = obs.reshape(-1, obs.shape[-1])
    count = statistics.count + len(obs)
    delta = obs.mean(0) - statistics.mean
    share = len(obs) / count
    variance = (1 - share) * statistics.variance + share * obs.var(0) + share * (1 - share) * delta**2
    return Statistics(count, statistics.mean + share * delta, variance)


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


class Networks(NamedTuple):
    actor: MLP  # π: (state, goal) -> mean and raw log-std
    critic: MLP  # V: (state, goal) -> value


class Minibatch(NamedTuple):
    obs: jax.Array  # normalised, (batch, observation_size)
    u: jax.Array  # (batch, action_dim)
    log_prob: jax.Array  # (batch,), as the others
    advantage: jax.Array
    target_value: jax.Array


def ppo_loss(params, batch, key, networks, args):
    """The losses of actor and critic in one sum.

    Args:
      params: dict of `actor` and `critic`.
      batch: `Minibatch`.
      key: of the noise with which the entropy is estimated.
    Returns:
      the sum, and a dict of scalars to log.
    """
    advantage = batch.advantage
    if args.normalize_advantage:
        advantage = (advantage - advantage.mean()) / (advantage.std() + 1e-8)
    actor_out = networks.actor.apply(params["actor"], batch.obs)
    log_ratio = log_prob_of(actor_out, batch.u) - batch.log_prob
    ratio = jnp.exp(log_ratio)
    clipped = jnp.clip(ratio, 1 - args.clip_eps, 1 + args.clip_eps)
    noise = jax.random.normal(key, batch.u.shape)
    entropy = -jnp.mean(log_prob_of(actor_out, sample_u(actor_out, noise)))
    actor_loss = -jnp.mean(jnp.minimum(ratio * advantage, clipped * advantage)) - args.entropy_coef * entropy
    value = networks.critic.apply(params["critic"], batch.obs)[..., 0]
    critic_loss = jnp.mean((value - batch.target_value) ** 2)
    metrics = {
        "critic": critic_loss,
        "actor": actor_loss,
        "entropy": entropy,
        "value": jnp.mean(value),
        "approx_kl": jnp.mean(ratio - 1 - log_ratio),
        "clip_fraction": jnp.mean(jnp.abs(ratio - 1) > args.clip_eps),
    }
    return actor_loss + critic_loss, metrics


# ---- training --------------------------------------------------------------------------------------------------------


def make_networks(args, env):
    return Networks(MLP(args, 2 * env.action_size), MLP(args, 1))


class RunnerState(NamedTuple):
    params: dict[str, Any]
    opt_state: optax.OptState
    statistics: Statistics | None  # with which the policy normalises what it sees
    env_state: Any
    num_steps: jax.Array  # (): steps that each environment has taken so far
    key: jax.Array
    eval_key: jax.Array  # evaluation draws from a stream of its own: training does not depend on it


class Schedule(NamedTuple):
    steps_per_iteration: int  # environment steps of an iteration: one unroll of all environments
    updates_per_iteration: int
    warmup_iterations: int  # without updates
    iterations_per_epoch: int
    num_epochs: int
    num_updates: int  # without those that fill up the last epoch: how often one evaluates must not change the training

    @property
    def total_timesteps(self):
        return (self.warmup_iterations + self.num_epochs * self.iterations_per_epoch) * self.steps_per_iteration


def make_schedule(args):
    """Counts iterations and epochs. Raises ValueError, with a value that would do, for flags that make no sense."""

    def check(condition, flag, advice):
        if not condition:
            raise ValueError(f"--{flag.replace('_', '-')} {getattr(args, flag)}: {advice}")

    check(args.activation in ACTIVATIONS, "activation", f"choose one of {', '.join(ACTIVATIONS)}")
    check(0 < args.gamma < 1, "gamma", "must lie between 0 and 1, both excluded")
    check(0 <= args.gae_lambda <= 1, "gae_lambda", "must lie between 0 and 1")
    for flag in ("clip_eps", "max_grad_norm"):
        check(getattr(args, flag) > 0, flag, "must be positive")
    blocks, rest = divmod(args.depth, 4)
    check(not (args.residual and rest), "depth", f"a residual block has 4 layers, try {4 * (blocks + 1)}")
    steps = args.num_envs * args.unroll_length
    fitting = max(args.num_envs // args.num_minibatches + 1, 2) * args.num_minibatches
    check(
        steps % args.num_minibatches == 0 and args.num_minibatches < steps,
        "num_minibatches",
        f"must divide the {steps} steps of an unroll into parts of at least 2; or try --num-envs {fitting}",
    )
    iterations = math.ceil(args.total_timesteps / steps)
    per_epoch = math.ceil(iterations / args.num_evals)
    updates = args.update_epochs * args.num_minibatches
    return Schedule(steps, updates, 0, per_epoch, math.ceil(iterations / per_epoch), iterations * updates)


def normalize(statistics, obs):
    """Observations (..., observation_size) with mean 0 and variance 1, if there are statistics to know these by."""
    if statistics is None:
        return obs
    return jnp.clip((obs - statistics.mean) / jnp.sqrt(statistics.variance + 1e-6), -10.0, 10.0)


def actor_output(networks, runner, obs):
    """The actor's output for observations (..., observation_size)."""
    return networks.actor.apply(runner.params["actor"], normalize(runner.statistics, obs))


def act(networks, runner, obs, noise):
    """Actions in [-1, 1], (..., action_dim), for observations (..., observation_size) and noise like the actions.

    Standard normal noise samples the policy, 0 takes its mean. Evaluation and the policy that a run exports act by
    this; the exported one has no `runner.env_state`.
    """
    return jnp.tanh(sample_u(actor_output(networks, runner, obs), noise))


def evaluate(env, policy, key, num_episodes, episode_length, eval_noise):
    """Episodes of `policy`, (observations, noise) -> actions. What follows an early end counts as not near the goal."""

    def step(carry, key):
        env_state, running, steps_near, episode_return, final_dist = carry
        noise = eval_noise * jax.random.normal(key, (num_episodes, env.action_size))
        env_state = jax.vmap(env.step)(env_state, policy(env_state.obs, noise))
        steps_near += running * env_state.metrics["success"]
        episode_return += running * env_state.reward
        final_dist = jnp.where(running, env_state.metrics["dist"], final_dist)
        running *= (1 - env_state.done) * (1 - env_state.metrics["unstable"])
        return (env_state, running, steps_near, episode_return, final_dist), None

    zeros = jnp.zeros(num_episodes)
    env_state = jax.vmap(env.reset)(jax.random.split(key, num_episodes))
    carry = (env_state, zeros + 1, zeros, zeros, zeros)
    noise_keys = jax.random.split(jax.random.fold_in(key, num_episodes), episode_length)  # one that split does not give
    (_, _, steps_near, episode_return, final_dist), _ = jax.lax.scan(step, carry, noise_keys)
    return {
        "eval/success_rate": jnp.mean(steps_near > 0),
        "eval/time_near_goal": jnp.mean(steps_near) / episode_length,
        "eval/final_dist": jnp.mean(final_dist),
        "eval/episode_return": jnp.mean(episode_return),
    }


def make_train(args, env=None, eval_env=None, log=None):
    """Builds the two pure functions that are the whole training.

    `runner_state = init(key)` makes networks and environments;
    `runner_state, metrics = train(runner_state, num_epochs)` is one scan over epochs. `metrics` is a dict of arrays
    (num_epochs,). Both can be jitted, and vmapped over seeds.

    Args:
      env, eval_env: tasks of one's own, with rewards of their own, instead of those that `args` names.
      log: called on the host at the end of each epoch, while the scan goes on, with a dict of its metrics and
        `num_steps`, the steps that each environment has taken so far.
    """
    schedule = make_schedule(args)
    env = env or envs.make(args.env_id, args.backend, args.dense_reward)
    eval_env = eval_env or envs.make_eval(env, args.eval_env_id)
    episode_length = args.episode_length or env.episode_length
    eval_length = args.episode_length or eval_env.episode_length
    train_env = envs.wrap(env, args.num_envs, episode_length)

    networks = make_networks(args, env)
    lr = optax.linear_schedule(args.learning_rate, 0, schedule.num_updates) if args.anneal_lr else args.learning_rate
    optimizer = optax.chain(optax.clip_by_global_norm(args.max_grad_norm), optax.adam(lr))

    def init(key):
        key, eval_key, env_key, actor_key, critic_key = jax.random.split(key, 5)
        env_state = train_env.reset(env_key)
        obs = env_state.obs[0]
        params = {"actor": networks.actor.init(actor_key, obs), "critic": networks.critic.init(critic_key, obs)}
        statistics = Statistics(jnp.zeros(()), jnp.zeros_like(obs), jnp.ones_like(obs))
        statistics = statistics if args.normalize_observations else None
        return RunnerState(params, optimizer.init(params), statistics, env_state, jnp.int32(0), key, eval_key)

    def unroll(runner):
        """Steps every environment `unroll_length` times with the stochastic policy; returns these `Transition`s too."""

        def step(env_state, key):
            obs = env_state.obs
            actor_out = actor_output(networks, runner, obs)
            u = sample_u(actor_out, jax.random.normal(key, (args.num_envs, env.action_size)))
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
        keys = jax.random.split(unroll_key, args.unroll_length)
        env_state, transitions = jax.lax.scan(step, runner.env_state, keys)
        num_steps = runner.num_steps + args.unroll_length
        return runner._replace(env_state=env_state, num_steps=num_steps, key=key), transitions

    def update(carry, inputs):
        params, opt_state = carry
        grads, metrics = jax.grad(ppo_loss, has_aux=True)(params, *inputs, networks, args)
        updates, opt_state = optimizer.update(grads, opt_state)
        return (optax.apply_updates(params, updates), opt_state), metrics

    def iterate(runner, _):
        """One unroll, then several epochs of updates, each on another split into minibatches."""
        runner, transitions = unroll(runner)
        obs, next_obs = (normalize(runner.statistics, obs) for obs in (transitions.obs, transitions.next_obs))
        value, next_value = (networks.critic.apply(runner.params["critic"], x)[..., 0] for x in (obs, next_obs))
        advantage = advantages_of(transitions, value, next_value, args.gamma, args.gae_lambda)
        batch = Minibatch(obs, transitions.u, transitions.log_prob, advantage, advantage + value)
        batch = jax.tree.map(lambda x: x.reshape(-1, *x.shape[2:]), batch)

        def update_epoch(carry, key):
            order_key, noise_key = jax.random.split(key)
            order = jax.random.permutation(order_key, schedule.steps_per_iteration)
            order = order.reshape(args.num_minibatches, -1)
            keys = jax.random.split(noise_key, args.num_minibatches)
            return jax.lax.scan(update, carry, (jax.tree.map(lambda x: x[order], batch), keys))

        key, update_key = jax.random.split(runner.key)
        keys = jax.random.split(update_key, args.update_epochs)
        (params, opt_state), metrics = jax.lax.scan(update_epoch, (runner.params, runner.opt_state), keys)
        runner = runner._replace(params=params, opt_state=opt_state, key=key)
        if args.normalize_observations:
            runner = runner._replace(statistics=update_statistics(runner.statistics, transitions.obs))
        return runner, jax.tree.map(jnp.mean, metrics)

    def epoch(runner, _):
        runner, losses = jax.lax.scan(iterate, runner, length=schedule.iterations_per_epoch)
        eval_key, key = jax.random.split(runner.eval_key)
        policy = partial(act, networks, runner)
        metrics = evaluate(eval_env, policy, key, args.num_eval_envs, eval_length, args.eval_noise)
        metrics |= {f"losses/{name}": jnp.mean(x) for name, x in losses.items()}
        metrics["charts/unstable_resets"] = runner.env_state.info["unstable_resets"].sum()
        if log is not None:
            envs.stream(log, {"num_steps": runner.num_steps} | metrics)
        return runner._replace(eval_key=eval_key), metrics

    def train(runner, num_epochs):
        return jax.lax.scan(epoch, runner, length=num_epochs)

    return init, train


# ---- main ------------------------------------------------------------------------------------------------------------


def main():
    args = envs.parse_args(Args)
    with envs.mistakes_in_one_line():
        schedule = make_schedule(args)
        env = envs.make(args.env_id, args.backend, args.dense_reward)
        eval_env = envs.make_eval(env, args.eval_env_id)
    if args.evaluate:
        return envs.report(args, eval_env, evaluate)
    run = envs.Run(args, env, eval_env, schedule)
    init, train = make_train(args, env, eval_env, run.log)
    run.execute(init, train, partial(act, make_networks(args, env)))


if __name__ == "__main__":
    main()
