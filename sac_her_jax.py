"""Soft actor-critic with hindsight experience replay (SAC + HER): goals that were reached by chance teach how to reach.

The reward of a step is 1 where it ends near the goal and 0 elsewhere (or the task's shaped one, --dense-reward). Twin
critics Q₁, Q₂(s, a, g) learn the discounted sum of rewards, and of α times the policy's entropy, that is to come; α is
tuned to keep the entropy at its target H̄:

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
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from jax.lax import stop_gradient as stop
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
    unroll_length: int = 25  # steps of each environment between updates, rounded up to whole chunks and updates
    num_evals: int = 20  # evaluations at most, evenly spaced; the time between two is an epoch
    num_eval_envs: int = 128  # episodes of an evaluation
    eval_noise: float = 1.0  # noise of evaluated actions, in standard deviations: 1 samples the policy, 0 is its mean

    # algorithm
    env_steps_per_update: int = 16  # environment steps, over all environments, for each gradient update
    batch_size: int = 256  # transitions of an update
    buffer_size: int = 10_000  # steps of each environment in the replay buffer, rounded up to whole unrolls
    learning_starts: int = 50  # steps of each environment before the first update, even beyond total_timesteps
    gamma: float = 0.95  # discount of rewards to come; with 0.99 far goals count more
    dense_reward: bool = False  # the task's shaped reward instead of 1 near the goal and 0 elsewhere
    her_ratio: float = 0.8  # share of a batch that gets a goal reached later in its trajectory; 0 is plain SAC
    her_strategy: Literal["future", "final"] = "future"  # hindsight goals: of any later step, or of the last one
    tau: float = 0.005  # share of the way to the critics that their targets go in each update
    noise_correlation: float = 0.0  # of exploration noise, from step to step of an unroll: near 1 it goes farther
    goal_steps: int = 0  # after every so many steps a training episode takes a neighbour's goal; 0: it keeps its own
    normalize_observations: bool = True  # by mean and deviation of all states and achieved goals so far
    target_entropy: float = -0.5  # H̄ for each dimension of an action or chunk, in nats: alpha keeps the entropy there
    actor_lr: float = 1e-3  # Adam's learning rate for the actor
    critic_lr: float = 1e-3  # Adam's learning rate for both critics
    alpha_lr: float = 1e-3  # Adam's learning rate for log alpha
    anneal_lr: bool = False  # let learning rates fall linearly, to 0 at the end of the run

    # networks
    width: int = 256  # units of a hidden layer
    depth: int = 2  # hidden layers of the actor and of each critic; with residual a multiple of 4
    activation: Literal["relu", "swish"] = "relu"  # nonlinearity of the hidden layers
    layer_norm: bool = False  # normalise each hidden layer; deep networks need it
    residual: bool = False  # residual blocks of 4 hidden layers, behind one more layer that widens the input

    def __post_init__(self):
        super().__post_init__()
        harness.check((self.gamma > 0) & (self.gamma < 1), "--gamma must lie between 0 and 1, both excluded")
        harness.check(self.her_ratio <= 1, "--her-ratio must lie between 0 and 1")
        harness.check((self.tau > 0) & (self.tau <= 1), "--tau must lie between 0, excluded, and 1")
        harness.check(self.noise_correlation < 1, "--noise-correlation must be less than 1")
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
    critic: MLP  # Q: (state, action, goal) -> value, for both critics


def make_networks(args, env):
    mlp = partial(MLP, partial(Layer, args.width, args.activation, args.layer_norm), args.depth, args.residual)
    return Networks(mlp(2 * env.action_size), mlp(1))


def sample_action(actor_out, noise):
    """The action in [-1, 1] that standard normal noise, (..., action_dim), draws, and its log-density, (...,)."""
    mean, log_std = jnp.split(actor_out, 2, axis=-1)
    log_std = -5 + 3.5 * (jnp.tanh(log_std) + 1)  # between -5 and 2
    u = mean + jnp.exp(log_std) * noise
    log_prob = -0.5 * noise**2 - log_std - 0.5 * math.log(2 * math.pi)
    log_prob -= 2 * (math.log(2) - u - softplus(-2 * u))  # log(1 - tanh(u)²), exact also where tanh saturates
    return jnp.tanh(u), log_prob.sum(-1)


# ---- replay buffer ---------------------------------------------------------------------------------------------------


class Transition(NamedTuple):
    state: jax.Array  # s_t, (..., state_dim)
    action: jax.Array  # a_t, (..., action_dim)
    goal: jax.Array  # what the policy was after, (..., goal_dim); arm_grasp's moves, and is that after the action
    next_state: jax.Array  # s_{t+1}, (..., state_dim): what the action led to, before any reset
    terminated: jax.Array  # 1 where the task itself ended the episode, (...,)


class Buffer(NamedTuple):
    """A ring in time: step t of every environment lies in slot t % capacity.

    One environment's column with capacity 8 after 11 steps, whose trajectory 1 began at step 3 and trajectory 2 at 9:

        slot                 0  1  2  3  4  5  6  7
        step that it holds   8  9 10  3  4  5  6  7
        traj_id              1  2  2  1  1  1  1  1
        last_step            2  8 10  .  .  .  .  .     trajectory i's newest step is in slot i % capacity
    """

    data: Transition  # (capacity, num_envs, ...)
    traj_id: jax.Array  # (capacity, num_envs): the trajectory that a step belongs to: 0, 1, 2, … in each environment
    last_step: jax.Array  # (capacity, num_envs): of a trajectory; there are no more of them than slots
    num_steps: jax.Array  # (): steps written so far, overwritten ones included


def buffer_init(transition, capacity, num_envs):
    """An empty buffer for transitions like `transition`, which has no leading axes."""
    data = jax.tree.map(lambda x: jnp.zeros((capacity, num_envs, *x.shape), x.dtype), transition)
    index = jnp.zeros((capacity, num_envs), jnp.int32)
    return Buffer(data, index, index, jnp.int32(0))


def buffer_add(buffer, transitions, traj_id):
    """Writes `transitions` and `traj_id`, (time, num_envs, ...), over the oldest; capacity is a multiple of time."""
    (capacity, num_envs), time_steps = buffer.traj_id.shape, len(traj_id)
    start, steps = buffer.num_steps % capacity, buffer.num_steps + jnp.arange(time_steps)[:, None]
    write = partial(jax.lax.dynamic_update_slice_in_dim, start_index=start, axis=0)
    data, traj_ids = jax.tree.map(write, (buffer.data, buffer.traj_id), (transitions, traj_id))
    last_step = buffer.last_step.at[traj_id % capacity, jnp.arange(num_envs)].max(steps)
    return Buffer(data, traj_ids, last_step, buffer.num_steps + time_steps)


def sample_transitions(buffer, key, batch_shape, her_ratio, her_strategy, get_goal):
    """Draws transitions, (`batch_shape`, ...), uniformly, and gives a share of them goals reached by hindsight.

    Such a goal is `get_goal(next_state)` of the same trajectory, k - 1 steps later: with n = steps from the transition
    to the trajectory's newest, itself included, k = n (`final`) or any of 1 ≤ k ≤ n (`future`). Costs O(1) a draw.
    """
    capacity, num_envs = buffer.traj_id.shape
    step_key, env_key, k_key, her_key = jax.random.split(key, 4)
    step = jax.random.randint(step_key, batch_shape, jnp.maximum(buffer.num_steps - capacity, 0), buffer.num_steps)
    env = jax.random.randint(env_key, batch_shape, 0, num_envs)
    n = buffer.last_step[buffer.traj_id[step % capacity, env] % capacity, env] - step + 1
    k = n if her_strategy == "final" else jax.random.randint(k_key, batch_shape, 1, n + 1)
    transition = jax.tree.map(lambda x: x[step % capacity, env], buffer.data)
    reached = get_goal(buffer.data.next_state[(step + k - 1) % capacity, env])
    relabel = jax.random.uniform(her_key, batch_shape) < her_ratio
    return transition._replace(goal=jnp.where(relabel[..., None], reached, transition.goal))


# ---- losses ----------------------------------------------------------------------------------------------------------


def q_values(networks, critics, state, action, goal):
    """Q_i(s, a, g), (2, batch), of the two critics."""
    return jnp.stack([networks.critic.apply(critic, state, action, goal)[..., 0] for critic in critics])


def critic_loss(params, target_critics, batch, reward, noise, networks, args):
    """L(Q) of a `Transition` of (batch, ...) and its rewards, (batch,), and metrics.

    Standard normal noise, (batch, action_dim), picks the next action.
    """
    state, action, goal, next_state, terminated = batch
    next_action, next_log_prob = sample_action(networks.actor.apply(params["actor"], next_state, goal), noise)
    next_value = q_values(networks, target_critics, next_state, next_action, goal).min(0)
    next_value -= jnp.exp(params["log_alpha"]) * next_log_prob
    target = stop(reward + args.gamma**args.action_chunk * (1 - terminated) * next_value)
    q = q_values(networks, params["critics"], state, action, goal)
    loss = jnp.mean(jnp.sum((q - target) ** 2, axis=0))
    return loss, {"critic": loss, "q": jnp.mean(q), "reward": jnp.mean(reward)}


def actor_loss(params, state, goal, noise, networks):
    """L(π), and -mean(log π(a | s, g)), for actions that standard normal noise, (batch, action_dim), picks."""
    action, log_prob = sample_action(networks.actor.apply(params["actor"], state, goal), noise)
    q = q_values(networks, stop(params["critics"]), state, action, goal).min(0)
    alpha = stop(jnp.exp(params["log_alpha"]))
    return jnp.mean(alpha * log_prob - q), -jnp.mean(log_prob)


def alpha_loss(params, entropy, target_entropy):
    """L(α), whose gradient lowers α while the policy has more entropy than its target."""
    return jnp.exp(params["log_alpha"]) * stop(entropy - target_entropy)


def total_loss(params, target_critics, batch, reward, noise, networks, args):
    """The sum of the three, each of which trains its own parameters alone, and a dict of scalars to log."""
    critic, metrics = critic_loss(params, target_critics, batch, reward, noise[0], networks, args)
    actor, entropy = actor_loss(params, batch.state, batch.goal, noise[1], networks)
    alpha = alpha_loss(params, entropy, args.target_entropy * batch.action.shape[-1])
    metrics |= {"actor": actor, "alpha_loss": alpha, "alpha": jnp.exp(params["log_alpha"]), "entropy": entropy}
    return critic + actor + alpha, metrics


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
    unit = args.env_steps_per_update // math.gcd(args.env_steps_per_update, steps_per_action)  # for whole updates
    unroll = math.ceil(args.unroll_length / (args.action_chunk * unit)) * unit
    steps = unroll * steps_per_action
    updates = steps // args.env_steps_per_update
    warmup = math.ceil(args.learning_starts / (unroll * args.action_chunk)) - 1  # an iteration unrolls, then learns
    iterations = max(math.ceil(args.total_timesteps / steps) - warmup, 1)
    per_epoch = math.ceil(iterations / args.num_evals)
    return Schedule(unroll, steps, updates, warmup, per_epoch, math.ceil(iterations / per_epoch), iterations * updates)


class RunnerState(NamedTuple):
    params: dict[str, Any]
    target_critics: Any
    opt_state: optax.OptState
    statistics: running_statistics.RunningStatisticsState  # of states and of the goals that they achieve, so far
    env_state: Any
    buffer: Buffer
    key: jax.Array
    eval_key: jax.Array  # evaluation draws from a stream of its own: training does not depend on it


def act(networks, runner, obs, noise):
    """Actions for observations (..., observation_size); standard normal noise samples the policy, 0 takes its mean."""
    state, goal = running_statistics.normalize(jnp.split(obs, [len(runner.statistics.mean[0])], -1), runner.statistics)
    return sample_action(networks.actor.apply(runner.params["actor"], state, goal), noise)[0]


def make_train(args, env=None, eval_env=None):
    """The whole training as two pure functions, for `jit`, and for `vmap` over seeds.

    `runner = init(key)` makes networks, environments and a buffer, filled by the warm-up. One scan over epochs is
    `runner, metrics = train(runner, num_epochs)`; `metrics` is a dict of arrays (num_epochs,). `env` and `eval_env` are
    tasks of one's own, with rewards of their own, instead of those that `args` names. With `--num-devices` each device
    calls both for its part of environments, buffer and batches.
    """
    env = env or envs.make(args.env_id, args.backend, args.dense_reward, layout=args.layout)
    env = envs.chunk(env, args.action_chunk)
    one_step = env.action_chunk == 1 or not env.dense_reward
    harness.check(one_step, "--dense-reward wants --action-chunk 1: a chunk is stored without the steps within it")
    eval_env = envs.chunk(eval_env or envs.make_eval(env, args.eval_env_id), args.action_chunk)
    num_envs = args.num_envs // args.num_devices
    train_env = envs.wrap(env, num_envs, args.episode_length or env.episode_length)
    schedule, networks = make_schedule(args), make_networks(args, env)

    rates = {"actor": args.actor_lr, "critics": args.critic_lr, "log_alpha": args.alpha_lr}
    if args.anneal_lr:
        rates = {name: optax.linear_schedule(lr, 0, schedule.num_updates) for name, lr in rates.items()}
    scale = {name: optax.scale_by_learning_rate(lr) for name, lr in rates.items()}
    # Over one flat vector Adam is one kernel on a GPU, instead of one for each array.
    optimizer = optax.chain(optax.flatten(optax.scale_by_adam()), optax.multi_transform(scale, {k: k for k in scale}))

    def unroll(runner):
        """Every environment takes `unroll_length` actions, with noise, into the buffer and the statistics."""

        def step(env_state, noise):
            state, goal = jnp.split(env_state.obs, [env.state_dim], axis=-1)
            pursued = partial(envs.pursued_goals, steps=env_state.info["steps"], goal_steps=args.goal_steps)
            action = act(networks, runner, jnp.concatenate([state, pursued(goal)], axis=-1), noise)
            after = train_env.step(env_state, action)
            next_state, goal = jnp.split(after.info["next_obs"], [env.state_dim], axis=-1)  # arm_grasp's goal moves
            terminated = after.done - after.info["truncation"]
            return after, (Transition(state, action, pursued(goal), next_state, terminated), env_state.info["traj_id"])

        key, noise_key = jax.random.split(runner.key)
        noise = envs.action_noise(train_env, noise_key, schedule.unroll_length, args.noise_correlation)
        env_state, (transitions, traj_id) = jax.lax.scan(step, runner.env_state, noise)
        buffer, statistics = buffer_add(runner.buffer, transitions, traj_id), runner.statistics
        if args.normalize_observations:
            seen = [transitions.state, env.achieved(transitions.next_state)]
            statistics = running_statistics.update(statistics, seen, std_min_value=0.01, pmap_axis_name=args.axes)
            floor = [0, env.goal_reach_thresh]  # what is nearer than the threshold counts as there: no finer unit
            statistics = statistics.replace(std=jax.tree.map(jnp.maximum, statistics.std, floor))
        return runner._replace(statistics=statistics, env_state=env_state, buffer=buffer, key=key)

    def init(key):
        key, eval_key, env_key, actor_key, *critic_keys = jax.random.split(key, 6)
        if args.num_devices > 1:  # each has starts, goals and noise of its own
            device = jax.lax.axis_index(args.axes)
            key, eval_key, env_key = (jax.random.fold_in(k, device) for k in (key, eval_key, env_key))
        env_state = train_env.reset(env_key)
        state, goal, action = *jnp.split(env_state.obs[0], [env.state_dim]), jnp.zeros(env.action_size)
        params = {
            "actor": networks.actor.init(actor_key, state, goal),
            "critics": tuple(networks.critic.init(critic_key, state, action, goal) for critic_key in critic_keys),
            "log_alpha": jnp.zeros(()),
        }
        capacity = schedule.unroll_length * math.ceil(args.buffer_size / (schedule.unroll_length * args.action_chunk))
        transition = Transition(state, action, goal, state, jnp.zeros(()))
        buffer = buffer_init(transition, capacity, num_envs)
        target_critics = jax.tree.map(jnp.copy, params["critics"])
        opt_state, statistics = optimizer.init(params), running_statistics.init_state([state, goal])
        runner = RunnerState(params, target_critics, opt_state, statistics, env_state, buffer, key, eval_key)
        return jax.lax.fori_loop(0, schedule.warmup_iterations, lambda _, runner: unroll(runner), runner)

    def update(carry, inputs):
        params, target_critics, opt_state = carry
        grads, _ = jax.grad(total_loss, has_aux=True)(params, target_critics, *inputs, networks, args)
        updates, opt_state = optimizer.update(jax.lax.pmean(grads, args.axes), opt_state)
        params = optax.apply_updates(params, updates)
        target_critics = optax.incremental_update(params["critics"], target_critics, args.tau)
        return (params, target_critics, opt_state), None

    def iterate(runner, _):
        """One unroll, then its updates, their batches drawn all at once."""
        runner = unroll(runner)
        key, batch_key, noise_key = jax.random.split(runner.key, 3)
        shape = (schedule.updates_per_iteration, args.batch_size // args.num_devices)
        batches = sample_transitions(runner.buffer, batch_key, shape, args.her_ratio, args.her_strategy, env.achieved)
        get_reward = jax.vmap(jax.vmap(env.get_reward))  # after the action, for the goal it has now
        rewards = get_reward(batches.state, batches.action, batches.next_state, batches.goal)
        raw = [jnp.stack([batches.state, batches.next_state]), batches.goal]
        (state, next_state), goal = running_statistics.normalize(raw, runner.statistics)
        batches = batches._replace(state=state, goal=goal, next_state=next_state)
        noise = jax.random.normal(noise_key, (shape[0], 2, shape[1], env.action_size))
        carry = runner.params, runner.target_critics, runner.opt_state
        (params, target_critics, opt_state), _ = jax.lax.scan(update, carry, (batches, rewards, noise))
        last = jax.tree.map(lambda x: x[-1], (batches, rewards, noise))  # one batch is enough for metrics
        _, metrics = total_loss(params, target_critics, *last, networks, args)
        runner = runner._replace(params=params, target_critics=target_critics, opt_state=opt_state, key=key)
        return runner, metrics

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
