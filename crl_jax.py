"""Contrastive reinforcement learning (CRL): reach goals without a reward function or a model of the world.

Take a state and an action of a past trajectory and, as a goal, what that trajectory achieved k steps later:

    (s_t, a_t),   g = state_{t+k}[goal_indices] + σε,   P(k) ∝ γ^k,   1 ≤ k ≤ n,   ε ~ N(0, I)

where goal_indices are the entries of a state that a goal is about, and n the steps recorded from t on. Networks φ and ψ
turn (s, a) and g, s and g normalised, into vectors. A critic f(s, a, g) = energy(φ(s, a), ψ(g)), by default minus their
distance, learns which goal of a batch belongs to which (s, a). Each row i of logits[i, j] = f(s_i, a_i, g_j) - log m_i
is a classification problem with answer column i, each column j one with answer row j; all else are negatives. m_i is 1
or, where the task ended the trajectory, 1 - γ^n: nothing is reached beyond. The symmetric InfoNCE loss is

    L(φ, ψ) = mean_i( logsumexp_j logits[i, j] - logits[i, i] ) + mean_j( logsumexp_i logits[i, j] - logits[j, j] )
              + c · mean_i( (logsumexp_j logits[i, j])² )

Its best critic is, up to a constant that the last term fixes, log p(g | s, a) - log p(g): how much likelier g is to be
reached, discounted by γ, after a in s than at random, under the policies that filled the buffer (where tasks end
trajectories, if n follows from (s, a); σ > 0 blurs g, --best-of changes p(g)). So the actor picks the actions likeliest
to lead to its goal g', the row's own g, another row's, or the one commanded then; α is tuned to keep its entropy at H̄:

    L(π) = mean( α log π(a | s, g') - f(s, a, g') ),  a ~ π(· | s, g')     L(α) = α · mean( -log π(a | s, g') - H̄ )

Papers: Eysenbach et al. 2022 (arXiv 2206.07568), Bortkiewicz et al. 2025 (2408.11052), Wang et al. 2025 (2503.14858).
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
from jax.nn import logsumexp, softplus

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
    batch_size: int = 256  # (state, action, goal) rows of an update; each has batch_size - 1 negatives
    buffer_size: int = 10_000  # steps of each environment in the replay buffer, rounded up to whole unrolls
    learning_starts: int = 50  # steps of each environment before the first update, even beyond total_timesteps
    gamma: float = 0.95  # discount: a goal is drawn k steps ahead with probability proportional to gamma^k
    energy: Literal["norm", "l2", "dot"] = "norm"  # similarity of two representations
    contrastive_loss: Literal["fwd_infonce", "bwd_infonce", "sym_infonce", "binary_nce"] = "sym_infonce"  # critic's
    logsumexp_penalty: float = 0.1  # weight c of the squared logsumexp in the critic's loss
    random_goals: float = 0.0  # share of a batch for which the actor's goal is another row's
    commanded_goals: float = 0.5  # share of a batch for which the actor's goal is the one commanded at the time
    best_of: int = 1  # candidates for a row of a batch: the one whose step moves state[goal_indices] most is taken
    goal_noise: float = 0.0  # σ of the noise on a pair's goal, in thresholds of success
    noise_correlation: float = 0.0  # of exploration noise, from step to step of an unroll: near 1 it goes farther
    goal_steps: int = 0  # after every so many steps a training episode takes a neighbour's goal; 0: it keeps its own
    normalize_observations: bool = True  # by mean and deviation of all states and achieved goals so far
    target_entropy: float = -1.0  # H̄ for each dimension of an action or chunk, in nats: alpha keeps the entropy there
    actor_lr: float = 1e-3  # Adam's learning rate for the actor
    critic_lr: float = 1e-3  # Adam's learning rate for the critic's two encoders
    alpha_lr: float = 1e-3  # Adam's learning rate for log alpha
    anneal_lr: bool = True  # let learning rates fall linearly, to 0 at the end of the run

    # networks
    width: int = 256  # units of a hidden layer
    depth: int = 2  # hidden layers of the actor and of each encoder; with residual a multiple of 4
    repr_dim: int = 64  # size of the representations phi and psi
    activation: Literal["relu", "swish"] = "relu"  # nonlinearity of the hidden layers
    layer_norm: bool = False  # normalise each hidden layer; deep networks need it
    residual: bool = False  # residual blocks of 4 hidden layers, behind one more layer that widens the input

    def __post_init__(self):
        super().__post_init__()
        harness.check(self.batch_size > 1, "--batch-size must be at least 2, or there are no negatives")
        harness.check((self.gamma > 0) & (self.gamma < 1), "--gamma must lie between 0 and 1, both excluded")
        harness.check(self.random_goals + self.commanded_goals <= 1, "--random-goals + --commanded-goals exceeds 1")
        harness.check(self.noise_correlation < 1, "--noise-correlation must be less than 1")
        harness.check(not self.residual or self.depth % 4 == 0, "--depth must be a multiple of 4 with --residual")


OF_TASKS = {  # defaults of tasks whose id fits, on the command line: of all that fit, and of one flag the last
    "*reach*": dict(gamma=0.99, commanded_goals=0.0),
    "ant*": dict(action_chunk=3, noise_correlation=0.9, goal_steps=250, target_entropy=-2.0, total_timesteps=2_500_000),
    "ant*maze*": dict(gamma=0.97, target_entropy=-1.0),
    "arm_[bp]*": dict(best_of=4, noise_correlation=0.9, goal_noise=0.3, layer_norm=True, total_timesteps=1_500_000),
    "cheetah": dict(num_envs=64, gamma=0.9, target_entropy=-0.5),
    "pusher*": dict(noise_correlation=0.95, episode_length=200, gamma=0.98, layer_norm=True, target_entropy=0.0),
    "pusher_[eh]*": dict(best_of=4, random_goals=0.5, goal_noise=0.3, depth=4, total_timesteps=3_000_000),
    "simple*": dict(num_envs=64, noise_correlation=0.9, goal_steps=125, target_entropy=-0.5),
}  # fmt: skip


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
    phi: MLP  # φ: (state, action) -> representation
    psi: MLP  # ψ: goal -> representation


def make_networks(args, env):
    mlp = partial(MLP, partial(Layer, args.width, args.activation, args.layer_norm), args.depth, args.residual)
    return Networks(mlp(2 * env.action_size), mlp(args.repr_dim), mlp(args.repr_dim))


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
    goal: jax.Array  # what the policy was after, (..., goal_dim): the commanded goal
    achieved: jax.Array  # state_{t+1}[goal_indices], (..., goal_dim): where the action led, before any reset
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


def sample_pairs(buffer, key, batch_shape, gamma):
    """Draws transitions, (`batch_shape`, ...), for each a goal that its trajectory achieved, and log m, `batch_shape`.

    Transitions are uniform over the buffer. The goal is what was achieved k steps after s_t, by the transition k - 1
    steps later: with n = steps from this one to the trajectory's newest, both included, P(k) ∝ γ^k, 1 ≤ k ≤ n.
    Costs O(1) a pair: u is uniform, F(k) = (1 - γ^k) / (1 - γ^n), and k = F⁻¹(u) = ⌈log(1 - u (1 - γ^n)) / log γ⌉.
    """
    capacity, num_envs = buffer.traj_id.shape
    step_key, env_key, k_key = jax.random.split(key, 3)
    step = jax.random.randint(step_key, batch_shape, jnp.maximum(buffer.num_steps - capacity, 0), buffer.num_steps)
    env = jax.random.randint(env_key, batch_shape, 0, num_envs)
    last = buffer.last_step[buffer.traj_id[step % capacity, env] % capacity, env]
    n, ended = last - step + 1, buffer.data.terminated[last % capacity, env]
    u, log_gamma = jax.random.uniform(k_key, batch_shape), jnp.log(gamma)
    mass = -jnp.expm1(n * log_gamma)  # 1 - γ^n
    k = jnp.ceil(jnp.log1p(-u * mass) / log_gamma).astype(jnp.int32).clip(1, n)
    transition = jax.tree.map(lambda x: x[step % capacity, env], buffer.data)
    return transition, buffer.data.achieved[(step + k - 1) % capacity, env], jnp.where(ended, jnp.log(mass), 0.0)


# ---- losses ----------------------------------------------------------------------------------------------------------


def energy(name, phi, psi, inner):
    """energy(φ, ψ) of rows (batch, repr_dim), or of all pairs with φ (batch, 1, repr_dim), given inner products."""
    squared_distance = jnp.maximum((phi**2).sum(-1) + (psi**2).sum(-1) - 2 * inner, 0)
    return {"norm": -jnp.sqrt(squared_distance + 1e-6), "l2": -squared_distance, "dot": inner}[name]


def contrastive_loss(name, logits):
    """How badly the logits, (batch, batch), tell the pairs on the diagonal from all others."""
    positive = jnp.trace(logits) / len(logits)
    rows, columns = (jnp.mean(logsumexp(logits, axis)) - positive for axis in (1, 0))
    binary = optax.sigmoid_binary_cross_entropy(logits, jnp.eye(len(logits))).sum(1).mean()
    return {"fwd_infonce": rows, "bwd_infonce": columns, "sym_infonce": rows + columns, "binary_nce": binary}[name]


def critic_loss(params, state, action, goal, log_mass, networks, args):
    """L(φ, ψ) of states (batch, state_dim), actions (batch, action_dim), goals (batch, goal_dim) and log m; metrics."""
    own = networks.phi.apply(params["phi"], state, action), networks.psi.apply(params["psi"], goal), log_mass
    phi, psi, log_mass = jax.lax.all_gather(own, args.axes, tiled=True)  # rows of all devices are negatives
    inner = jnp.matmul(phi, psi.T, precision="highest")  # differences of large squares: no place for TF32
    logits = energy(args.energy, phi[:, None], psi, inner) - log_mass[:, None]
    positive, lse = jnp.diag(logits), logsumexp(logits, axis=1)
    loss = contrastive_loss(args.contrastive_loss, logits) + args.logsumexp_penalty * jnp.mean(lse**2)
    return loss, {
        "critic": loss,
        "categorical_accuracy": jnp.mean(jnp.sum(logits >= positive[:, None], axis=1) == 1),  # only itself
        "logits_pos": jnp.mean(positive),
        "logits_neg": (jnp.mean(logits) * len(logits) - jnp.mean(positive)) / (len(logits) - 1),
        "logsumexp": jnp.mean(lse),
    }


def actor_loss(params, state, goal, noise, networks, args):
    """L(π), and -mean(log π(a | s, g')), for actions that standard normal noise, (batch, action_dim), picks."""
    action, log_prob = sample_action(networks.actor.apply(params["actor"], state, goal), noise)
    phi = networks.phi.apply(stop(params["phi"]), state, action)
    psi = networks.psi.apply(stop(params["psi"]), goal)
    alpha = stop(jnp.exp(params["log_alpha"]))
    f = energy(args.energy, phi, psi, (phi * psi).sum(-1))
    return jnp.mean(alpha * log_prob - f), -jnp.mean(log_prob)


def alpha_loss(params, entropy, target_entropy):
    """L(α), whose gradient lowers α while the policy has more entropy than its target."""
    return jnp.exp(params["log_alpha"]) * stop(entropy - target_entropy)


def total_loss(params, batch, noise, networks, args):
    """The sum of the three, each of which trains its own parameters alone, and a dict of scalars to log."""
    state, action, goal, commanded, log_mass = batch
    critic, metrics = critic_loss(params, state, action, goal, log_mass, networks, args)
    actor_goal, row = goal, jnp.arange(len(goal))[:, None]  # with no share the same array: XLA computes ψ(g) once
    if any(isinstance(share, jax.Array) or share for share in (args.random_goals, args.commanded_goals)):
        actor_goal = jnp.where(row < args.random_goals * len(goal), jnp.roll(goal, -1, axis=0), goal)  # the next row's
        actor_goal = jnp.where(row >= (1 - args.commanded_goals) * len(goal), commanded, actor_goal)
    actor, entropy = actor_loss(params, state, actor_goal, noise, networks, args)
    alpha = alpha_loss(params, entropy, args.target_entropy * action.shape[-1])
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
    tasks of one's own. With `--num-devices` each device calls both for its part of environments, buffer and batches.
    """
    env = envs.chunk(env or envs.make(args.env_id, args.backend, layout=args.layout), args.action_chunk)
    eval_env = envs.chunk(eval_env or envs.make_eval(env, args.eval_env_id), args.action_chunk)
    num_envs = args.num_envs // args.num_devices
    train_env = envs.wrap(env, num_envs, args.episode_length or env.episode_length)
    schedule, networks = make_schedule(args), make_networks(args, env)

    rates = {"actor": args.actor_lr, "phi": args.critic_lr, "psi": args.critic_lr, "log_alpha": args.alpha_lr}
    if args.anneal_lr:
        rates = {name: optax.linear_schedule(lr, 0, schedule.num_updates) for name, lr in rates.items()}
    scale = {name: optax.scale_by_learning_rate(lr) for name, lr in rates.items()}
    # Over one flat vector Adam is one kernel on a GPU, instead of one for each array.
    optimizer = optax.chain(optax.flatten(optax.scale_by_adam()), optax.multi_transform(scale, {k: k for k in scale}))

    def unroll(runner):
        """Every environment takes `unroll_length` actions, with noise, into the buffer and the statistics."""

        def step(env_state, noise):
            state, goal = jnp.split(env_state.obs, [env.state_dim], axis=-1)
            goal = envs.pursued_goals(goal, env_state.info["steps"], args.goal_steps)
            action = act(networks, runner, jnp.concatenate([state, goal], axis=-1), noise)
            after = train_env.step(env_state, action)
            achieved, terminated = env.achieved(after.info["next_obs"]), after.done - after.info["truncation"]
            return after, (Transition(state, action, goal, achieved, terminated), env_state.info["traj_id"])

        key, noise_key = jax.random.split(runner.key)
        noise = envs.action_noise(train_env, noise_key, schedule.unroll_length, args.noise_correlation)
        env_state, (transitions, traj_id) = jax.lax.scan(step, runner.env_state, noise)
        buffer, statistics = buffer_add(runner.buffer, transitions, traj_id), runner.statistics
        if args.normalize_observations:
            seen = [transitions.state, transitions.achieved]
            statistics = running_statistics.update(statistics, seen, std_min_value=0.01, pmap_axis_name=args.axes)
            floor = [0, env.goal_reach_thresh]  # what is nearer than the threshold counts as there: no finer unit
            statistics = statistics.replace(std=jax.tree.map(jnp.maximum, statistics.std, floor))
        return runner._replace(statistics=statistics, env_state=env_state, buffer=buffer, key=key)

    def init(key):
        key, eval_key, env_key, actor_key, phi_key, psi_key = jax.random.split(key, 6)
        if args.num_devices > 1:  # each has starts, goals and noise of its own
            device = jax.lax.axis_index(args.axes)
            key, eval_key, env_key = (jax.random.fold_in(k, device) for k in (key, eval_key, env_key))
        env_state = train_env.reset(env_key)
        state, goal, action = *jnp.split(env_state.obs[0], [env.state_dim]), jnp.zeros(env.action_size)
        params = {
            "actor": networks.actor.init(actor_key, state, goal),
            "phi": networks.phi.init(phi_key, state, action),
            "psi": networks.psi.init(psi_key, goal),
            "log_alpha": jnp.zeros(()),
        }
        capacity = schedule.unroll_length * math.ceil(args.buffer_size / (schedule.unroll_length * args.action_chunk))
        buffer = buffer_init(Transition(state, action, goal, goal, jnp.zeros(())), capacity, num_envs)
        opt_state, statistics = optimizer.init(params), running_statistics.init_state([state, goal])
        runner = RunnerState(params, opt_state, statistics, env_state, buffer, key, eval_key)
        return jax.lax.fori_loop(0, schedule.warmup_iterations, lambda _, runner: unroll(runner), runner)

    def update(carry, inputs):
        params, opt_state = carry
        grads, _ = jax.grad(total_loss, has_aux=True)(params, *inputs, networks, args)
        updates, opt_state = optimizer.update(jax.lax.pmean(grads, args.axes), opt_state)
        return (optax.apply_updates(params, updates), opt_state), None

    def iterate(runner, _):
        """One unroll, then its updates, their batches drawn all at once."""
        runner = unroll(runner)
        key, batch_key, noise_key, goal_key = jax.random.split(runner.key, 4)
        shape = (args.best_of, schedule.updates_per_iteration, args.batch_size // args.num_devices)
        now, goal, log_mass = sample_pairs(runner.buffer, batch_key, shape, args.gamma**args.action_chunk)
        best = jnp.argmax(jnp.square(now.achieved - env.achieved(now.state)).sum(-1), axis=0)  # (updates, batch)
        now, goal, log_mass = jax.tree.map(lambda x: x[best, *jnp.indices(shape[1:])], (now, goal, log_mass))
        goal += args.goal_noise * env.goal_reach_thresh * jax.random.normal(goal_key, goal.shape)
        state, goals = running_statistics.normalize([now.state, jnp.stack([goal, now.goal])], runner.statistics)
        inputs = (state, now.action, *goals, log_mass), jax.random.normal(noise_key, now.action.shape)
        (params, opt_state), _ = jax.lax.scan(update, (runner.params, runner.opt_state), inputs)
        _, metrics = total_loss(params, *jax.tree.map(lambda x: x[-1], inputs), networks, args)  # of the last batch
        return runner._replace(params=params, opt_state=opt_state, key=key), metrics

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
    args = harness.parse_args(Args, OF_TASKS)
    env = envs.chunk(envs.make(args.env_id, args.backend, layout=args.layout), args.action_chunk)
    eval_env = envs.make_eval(env, args.eval_env_id)
    init, train = make_train(args, env, eval_env)
    harness.run(args, env, eval_env, make_schedule(args), init, train, partial(act, make_networks(args, env)))


if __name__ == "__main__":
    main()
