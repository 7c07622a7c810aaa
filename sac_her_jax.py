"""Soft actor-critic with hindsight experience replay (SAC + HER): goals that were reached by chance teach how to reach.

The reward of a step is 1 where it ends near the goal and 0 elsewhere (or the task's shaped one, --dense-reward). Twin
critics Q₁, Q₂(s, a, g) learn how much of it is to come, discounted by γ, and with it the policy's entropy, as much as α
asks for, which is tuned to keep the entropy at its target H̄:

    y = r(s, a, s', g) + γ (1 - terminated) ( min_i Q̄_i(s', a', g) - α log π(a' | s', g) ),   a' ~ π(· | s', g)
    L(Q) = mean( (Q₁(s, a, g) - y)² + (Q₂(s, a, g) - y)² )
    L(π) = mean( α log π(a | s, g) - min_i Q_i(s, a, g) ),   a ~ π(· | s, g)
    L(α) = α · mean( -log π(a | s, g) - H̄ )

The targets Q̄ follow Q slowly, Q̄ ← Q̄ + τ (Q - Q̄). An episode that is cut off by its length is bootstrapped as if it
went on; only a termination of the task's own ends the sum.

A goal far away is never reached by chance, and a reward that is always 0 teaches nothing. So a share of each batch gets
another goal: where its own trajectory was later on. What happened stays true, for how the world answers an action does
not depend on the goal; only the reward is computed anew. --her-ratio 0 is plain SAC.

Papers: Haarnoja et al. 2018 (arXiv 1812.05905), Andrychowicz et al. 2017 (arXiv 1707.01495) and Bortkiewicz et al.
2025 (arXiv 2408.11052, the benchmark).
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
    env_steps_per_update: int = 16  # environment steps, over all environments, for each gradient update
    batch_size: int = 256  # transitions of an update
    buffer_size: int = 10_000  # steps of each environment in the replay buffer, rounded up to whole unrolls
    learning_starts: int = 50  # steps of each environment before the first update, rounded up to whole unrolls
    gamma: float = 0.95  # discount of rewards to come; with 0.99 far goals count more
    dense_reward: bool = False  # the task's shaped reward instead of 1 near the goal and 0 elsewhere
    her_ratio: float = 0.8  # share of a batch that gets a goal reached later in its trajectory; 0 is plain SAC
    her_strategy: str = "future"  # that goal: future (any later step, each as likely) or final (the last one)

    tau: float = 0.005  # share of the way to the critics that their targets go in each update
    noise_correlation: float = 0.0  # of exploration noise between steps of an unroll; near 1 it moves heavy bodies
    target_entropy: float = -0.5  # entropy to which alpha is tuned, nats per action dimension
    actor_lr: float = 1e-3  # Adam's learning rate for the actor
    critic_lr: float = 1e-3  # Adam's learning rate for both critics
    alpha_lr: float = 1e-3  # Adam's learning rate for log alpha
    anneal_lr: bool = False  # let the three learning rates fall linearly, to 0 at the end of the run

    # networks
    width: int = 256  # units of a hidden layer
    depth: int = 2  # hidden layers of the actor and of each critic; with residual a multiple of 4
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


def sample_action(actor_out, noise):
    """The action in [-1, 1] that standard normal noise, (..., action_dim), picks, and its log-density, (...,)."""
    mean, log_std = action_distribution(actor_out)
    u = mean + jnp.exp(log_std) * noise
    log_prob = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    log_prob -= 2 * (math.log(2) - u - softplus(-2 * u))  # log(1 - tanh(u)²), exact also where tanh saturates
    return jnp.tanh(u), log_prob.sum(-1)


def correlate(noise, correlation):
    """Makes each step of standard normal noise, (time, ...), correlated with the step before: an AR(1) process."""

    def step(before, fresh):
        now = correlation * before + math.sqrt(1 - correlation**2) * fresh
        return now, now

    return jnp.concatenate([noise[:1], jax.lax.scan(step, noise[0], noise[1:])[1]])


# ---- replay buffer ---------------------------------------------------------------------------------------------------

HER_STRATEGIES = ("future", "final")


class Transition(NamedTuple):
    state: jax.Array  # s_t, (..., state_dim)
    action: jax.Array  # a_t, (..., action_dim)
    goal: jax.Array  # what the policy was after, (..., goal_dim); arm_grasp's moves, and is that after the action
    next_state: jax.Array  # s_{t+1}, (..., state_dim): what the action led to, before any reset
    terminated: jax.Array  # 1 where the task itself ended the episode, (...,)


class Buffer(NamedTuple):
    """A ring in time: step t of every environment lies in slot t % capacity."""

    data: Transition  # (capacity, num_envs, ...)
    traj_id: jax.Array  # (capacity, num_envs): the trajectory that a step belongs to; consecutive in an environment
    last_step: jax.Array  # (capacity, num_envs): in row i % capacity, trajectory i's alone, its newest step
    num_steps: jax.Array  # (): steps written so far, overwritten ones included


def buffer_init(transition, capacity, num_envs):
    """An empty buffer for transitions like `transition`, which has no leading axes."""
    data = jax.tree.map(lambda x: jnp.zeros((capacity, num_envs, *x.shape), x.dtype), transition)
    index = jnp.zeros((capacity, num_envs), jnp.int32)
    return Buffer(data, index, index, jnp.int32(0))


def buffer_add(buffer, transitions, traj_id):
    """Writes `transitions` and `traj_id`, (time, num_envs, ...), over the oldest; capacity is a multiple of time."""
    capacity = buffer.traj_id.shape[0]
    start = buffer.num_steps % capacity

    def write(ring, new):
        return jax.lax.dynamic_update_slice_in_dim(ring, new, start, axis=0)

    time_steps, num_envs = traj_id.shape
    steps = buffer.num_steps + jnp.arange(time_steps)[:, None]
    return Buffer(
        jax.tree.map(write, buffer.data, transitions),
        write(buffer.traj_id, traj_id),
        buffer.last_step.at[traj_id % capacity, jnp.arange(num_envs)].max(steps),
        buffer.num_steps + time_steps,
    )


def sample_transitions(buffer, key, batch_shape, her_ratio, her_strategy, get_goal):
    """Draws transitions, (`batch_shape`, ...), uniformly, and gives a share of them goals reached by hindsight.

    Such a goal is `get_goal(next_state)` of the same trajectory, k - 1 steps later: with n = steps from the transition
    to the trajectory's newest, itself included, k = n (`final`) or any of 1 ≤ k ≤ n (`future`). Costs O(1) a draw.
    """
    capacity, num_envs = buffer.traj_id.shape
    step_key, env_key, k_key, her_key = jax.random.split(key, 4)
    oldest = jnp.maximum(buffer.num_steps - capacity, 0)
    step = jax.random.randint(step_key, batch_shape, oldest, buffer.num_steps)
    env = jax.random.randint(env_key, batch_shape, 0, num_envs)
    n = buffer.last_step[buffer.traj_id[step % capacity, env] % capacity, env] - step + 1
    k = n if her_strategy == "final" else jax.random.randint(k_key, batch_shape, 1, n + 1)
    transition = jax.tree.map(lambda x: x[step % capacity, env], buffer.data)
    reached = get_goal(buffer.data.next_state[(step + k - 1) % capacity, env])
    relabel = jax.random.uniform(her_key, batch_shape) < her_ratio
    return transition._replace(goal=jnp.where(relabel[..., None], reached, transition.goal))


# ---- losses ----------------------------------------------------------------------------------------------------------


class Networks(NamedTuple):
    actor: MLP  # π: (state, goal) -> mean and raw log-std
    critic: MLP  # Q: (state, action, goal) -> value, for both critics


def sac_loss(params, target_critics, batch, noise, networks, args):
    """The losses of critics, actor and α in one sum; stop-gradients keep each from the others' parameters.

    Args:
      params: dict of `actor`, `critics` (a pair) and `log_alpha`.
      target_critics: a pair like `critics`.
      batch: `Transition` of (batch, ...), and the reward of each, (batch,).
      noise: standard normal (2, batch, action_dim), picks the policy's actions in the next state and in this one.
    Returns:
      the sum, and a dict of scalars to log.
    """
    (state, action, goal, next_state, terminated), reward = batch
    stop = jax.lax.stop_gradient
    alpha = jnp.exp(params["log_alpha"])

    def q_values(critics, state, action):  # (2, batch)
        return jnp.stack([networks.critic.apply(critic, state, action, goal)[..., 0] for critic in critics])

    next_action, next_log_prob = sample_action(networks.actor.apply(params["actor"], next_state, goal), noise[0])
    next_value = q_values(target_critics, next_state, next_action).min(0) - alpha * next_log_prob
    target = stop(reward + args.gamma * (1 - terminated) * next_value)
    q = q_values(params["critics"], state, action)
    critic_loss = jnp.mean(jnp.sum((q - target) ** 2, axis=0))

    policy_action, log_prob = sample_action(networks.actor.apply(params["actor"], state, goal), noise[1])
    policy_q = q_values(stop(params["critics"]), state, policy_action).min(0)
    actor_loss = jnp.mean(stop(alpha) * log_prob - policy_q)

    entropy = -jnp.mean(log_prob)
    alpha_loss = alpha * stop(entropy - args.target_entropy * action.shape[-1])

    metrics = {
        "critic": critic_loss,
        "actor": actor_loss,
        "alpha_loss": alpha_loss,
        "alpha": alpha,
        "entropy": entropy,
        "q": jnp.mean(q),
        "reward": jnp.mean(reward),
    }
    return critic_loss + actor_loss + alpha_loss, metrics


# ---- training --------------------------------------------------------------------------------------------------------


def make_networks(args, env):
    return Networks(MLP(args, 2 * env.action_size), MLP(args, 1))


class RunnerState(NamedTuple):
    params: dict[str, Any]
    target_critics: Any
    opt_state: optax.OptState
    env_state: Any
    buffer: Buffer
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

    for flag, choices in dict(her_strategy=HER_STRATEGIES, activation=ACTIVATIONS).items():
        check(getattr(args, flag) in choices, flag, f"choose one of {', '.join(choices)}")
    check(0 < args.gamma < 1, "gamma", "must lie between 0 and 1, both excluded")
    check(args.noise_correlation < 1, "noise_correlation", "must be less than 1")
    check(args.target_entropy < 0.68, "target_entropy", "must be below 0.68, the most that tanh of a Gaussian has")
    check(args.her_ratio <= 1, "her_ratio", "must lie between 0 and 1")
    check(0 < args.tau <= 1, "tau", "must lie between 0, excluded, and 1")
    blocks, rest = divmod(args.depth, 4)
    check(not (args.residual and rest), "depth", f"a residual block has 4 layers, try {4 * (blocks + 1)}")
    need = max(args.learning_starts, args.unroll_length)
    check(args.buffer_size >= need, "buffer_size", f"at least {need}: the longer of learning starts and unroll")
    check(args.buffer_size < 2**30, "buffer_size", "less than 2**30")
    unit = args.env_steps_per_update // math.gcd(args.num_envs, args.env_steps_per_update)
    check(
        args.unroll_length % unit == 0,
        "unroll_length",
        f"an unroll of {args.num_envs} environments must be a multiple of {args.env_steps_per_update} environment steps"
        f" (--env-steps-per-update), try {max(args.unroll_length // unit, 1) * unit}",
    )
    steps = args.num_envs * args.unroll_length
    warmup = math.ceil(args.learning_starts / args.unroll_length) - 1  # an iteration unrolls before it learns
    iterations = math.ceil(args.total_timesteps / steps) - warmup
    check(iterations > 0, "total_timesteps", f"must be more than {warmup * steps}, those before learning starts")
    per_epoch = math.ceil(iterations / args.num_evals)
    updates = steps // args.env_steps_per_update
    return Schedule(steps, updates, warmup, per_epoch, math.ceil(iterations / per_epoch), iterations * updates)


def act(networks, runner, obs, noise):
    """Actions in [-1, 1], (..., action_dim), for observations (..., observation_size) and noise like the actions.

    Standard normal noise samples the policy, 0 takes its mean. Training, evaluation and the policy that a run exports
    all act by this; the exported one has neither `runner.buffer` nor `runner.env_state`.
    """
    action, _ = sample_action(networks.actor.apply(runner.params["actor"], obs), noise)
    return action


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

    `runner_state = init(key)` makes networks, environments and a buffer with its first transitions;
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

    def adam(lr):
        return optax.adam(optax.linear_schedule(lr, 0, schedule.num_updates) if args.anneal_lr else lr)

    optimizer = optax.multi_transform(
        {"actor": adam(args.actor_lr), "critic": adam(args.critic_lr), "alpha": adam(args.alpha_lr)},
        {"actor": "actor", "critics": "critic", "log_alpha": "alpha"},
    )

    def split_obs(obs):
        return obs[..., : env.state_dim], obs[..., env.state_dim :]

    def init(key):
        key, eval_key, env_key, actor_key, *critic_keys = jax.random.split(key, 6)
        env_state = train_env.reset(env_key)
        state, goal = split_obs(env_state.obs[0])
        action = jnp.zeros(env.action_size)
        params = {
            "actor": networks.actor.init(actor_key, state, goal),
            "critics": tuple(networks.critic.init(critic_key, state, action, goal) for critic_key in critic_keys),
            "log_alpha": jnp.zeros(()),
        }
        capacity = math.ceil(args.buffer_size / args.unroll_length) * args.unroll_length
        buffer = buffer_init(Transition(state, action, goal, state, jnp.zeros(())), capacity, args.num_envs)
        target_critics = jax.tree.map(jnp.copy, params["critics"])
        runner = RunnerState(params, target_critics, optimizer.init(params), env_state, buffer, key, eval_key)
        return jax.lax.fori_loop(0, schedule.warmup_iterations, lambda _, runner: unroll(runner), runner)

    def unroll(runner):
        """Steps every environment `unroll_length` times with the stochastic policy, into the buffer."""

        def step(env_state, noise):
            state, _ = split_obs(env_state.obs)
            action = act(networks, runner, env_state.obs, noise)
            traj_id = env_state.info["traj_id"]
            env_state = train_env.step(env_state, action)
            next_state, goal = split_obs(env_state.info["next_obs"])  # arm_grasp's goal moves
            terminated = env_state.done - env_state.info["truncation"]
            return env_state, (Transition(state, action, goal, next_state, terminated), traj_id)

        key, noise_key = jax.random.split(runner.key)
        shape = (args.unroll_length, args.num_envs, env.action_size)
        noise = correlate(jax.random.normal(noise_key, shape), args.noise_correlation)
        env_state, (transitions, traj_id) = jax.lax.scan(step, runner.env_state, noise)
        buffer = buffer_add(runner.buffer, transitions, traj_id)
        return runner._replace(env_state=env_state, buffer=buffer, key=key)

    def update(carry, inputs):
        params, target_critics, opt_state = carry
        grads, metrics = jax.grad(sac_loss, has_aux=True)(params, target_critics, *inputs, networks, args)
        updates, opt_state = optimizer.update(grads, opt_state)
        params = optax.apply_updates(params, updates)
        target_critics = optax.incremental_update(params["critics"], target_critics, args.tau)
        return (params, target_critics, opt_state), metrics

    def iterate(runner, _):
        """One unroll, then its updates, their batches drawn all at once."""
        runner = unroll(runner)
        key, batch_key, noise_key = jax.random.split(runner.key, 3)
        shape = (schedule.updates_per_iteration, args.batch_size)
        batches = sample_transitions(runner.buffer, batch_key, shape, args.her_ratio, args.her_strategy, env.achieved)
        get_reward = jax.vmap(jax.vmap(env.get_reward))  # after the action, for the goal it has now
        rewards = get_reward(batches.state, batches.action, batches.next_state, batches.goal)
        noise = jax.random.normal(noise_key, (shape[0], 2, shape[1], env.action_size))
        carry = runner.params, runner.target_critics, runner.opt_state
        carry, metrics = jax.lax.scan(update, carry, ((batches, rewards), noise))
        params, target_critics, opt_state = carry
        runner = runner._replace(params=params, target_critics=target_critics, opt_state=opt_state, key=key)
        return runner, jax.tree.map(jnp.mean, metrics)

    def epoch(runner, _):
        runner, losses = jax.lax.scan(iterate, runner, length=schedule.iterations_per_epoch)
        eval_key, key = jax.random.split(runner.eval_key)
        policy = partial(act, networks, runner)
        metrics = evaluate(eval_env, policy, key, args.num_eval_envs, eval_length, args.eval_noise)
        metrics |= {f"losses/{name}": jnp.mean(x) for name, x in losses.items()}
        metrics["charts/unstable_resets"] = runner.env_state.info["unstable_resets"].sum()
        if log is not None:
            envs.stream(log, {"num_steps": runner.buffer.num_steps} | metrics)
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
