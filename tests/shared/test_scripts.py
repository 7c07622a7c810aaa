"""The four scripts beside each other: every task trains, and what they share is the same word for word."""

import dataclasses
import inspect
import itertools
import re
import subprocess
import sys
from functools import partial
from pathlib import Path

import jax
import jax.export
import jax.numpy as jnp
import mujoco
import numpy as np
import pytest
from helpers import LEARNS, SCRIPTS, Line, Plane, load, make_args

import envs
import harness
from envs import running_statistics

PHYSICS = (  # one id of each model; those of the others differ in where things are
    "reacher", "cheetah", "pusher_easy", "pusher_reacher", "pusher2", "ant", "ant_u_maze", "ant_ball",
    "ant_ball_u_maze", "ant_push", "humanoid", "humanoid_u_maze", "simple_u_maze", "arm_reach", "arm_grasp",
    "arm_push_easy", "arm_binpick_easy", "arm_binpick_easy_eef",
)  # fmt: skip
OF_EACH_KIND = "reacher", "cheetah", "pusher_easy", "ant_u_maze", "ant_ball", "humanoid", "simple_u_maze", "arm_grasp"


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_learns(script):
    """To slide to goals in a square, in seconds; there is no physics in it."""
    module = load(script)
    args = make_args(script, **LEARNS)
    env = Plane(dense_reward=script == "ppo_jax")
    init, train = module.make_train(args, env)

    @jax.jit
    def before_and_after(key):
        runner = init(key)
        policy = partial(module.act, module.make_networks(args, env), runner)
        before = envs.evaluate(env, policy, key, 64, env.episode_length, args.eval_noise)
        return before, train(runner, 1)[1]

    before, after = before_and_after(jax.random.key(0))
    assert before["eval/time_near_goal"] < 0.15
    assert after["eval/time_near_goal"][0] > 0.5
    assert after["eval/success_rate"][0] > 0.8


@pytest.mark.parametrize(
    ("script", "env_id"),
    [*(("crl_jax", env_id) for env_id in envs.ENV_IDS), *itertools.product(SCRIPTS[1:], OF_EACH_KIND)],
)
def test_every_task_trains(script, env_id):
    """CRL for a few updates on each model, to the same bits on any number of MuJoCo's threads; the other scripts, and
    ids that differ in walls, starts or goals alone, are traced."""
    module = load(script)
    args = make_args(script, env_id=env_id)
    env = envs.make(env_id, args.backend)
    init, train = module.make_train(args, env)

    def run(key):
        before = init(key)
        runner, metrics = train(before, 1)
        return before.params, runner.params, metrics

    if script != "crl_jax" or env_id not in PHYSICS:
        before, after, _ = jax.eval_shape(run, jax.random.key(0))
        assert before == after
        return
    program = jax.jit(run)
    before, after, metrics = program(jax.random.key(0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((metrics, after)))
    for name in before:
        leaves = zip(jax.tree.leaves(before[name]), jax.tree.leaves(after[name]), strict=True)
        assert any(np.any(a != b) for a, b in leaves), name
    for threads in (1, 3):
        env._pipeline._data = [mujoco.MjData(env.sys.mj_model) for _ in range(threads)]
        env._pipeline._pool = mujoco.rollout.Rollout(nthread=threads)
        jax.tree.map(np.testing.assert_array_equal, program(jax.random.key(0)), (before, after, metrics))


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_trains_with_chunks_of_actions(script):
    """And starts no two networks alike, and draws nothing twice."""
    module = load(script)
    args = make_args(script, env_id="simple_u_maze", action_chunk=3, episode_length=7)
    init, train = module.make_train(args)

    @jax.jit
    def run(key):
        before = init(key)
        return before, *train(before, 1)

    before, runner, metrics = run(jax.random.key(0))
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((metrics, runner.params)))
    assert metrics["train/episode_length"][0] == 9  # 7 single steps, rounded up to whole chunks
    if script != "ppo_jax":
        assert runner.buffer.data.action.shape[-1] == 6
    kernels = [x for x in jax.tree.leaves(before.params) if x.ndim == 2]
    assert not any(np.array_equal(one, other) for one, other in itertools.combinations(kernels, 2))
    spent, iterations = [before.key], module.make_schedule(args).iterations_per_epoch
    for _ in range(2 * iterations - 1):  # an unroll and its updates split the key once each
        spent.append(jax.random.split(spent[-1])[0])
    assert runner.key not in spent and runner.eval_key != before.eval_key


def test_envs_is_imported_before_mujoco():
    """Which chooses how it draws when it is imported; envs has it draw without a display."""
    one = "try: import {}\nexcept ImportError: print('mujoco' in sys.modules)\n"
    code = "import sys; sys.modules['envs'] = None\n" + "".join(map(one.format, SCRIPTS))
    root = Path(__file__).parents[2]
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=root).stdout
    assert out.split() == ["False"] * len(SCRIPTS)


@pytest.mark.parametrize("script", SCRIPTS[:3])
def test_an_episode_goes_on_with_neighbours_goals(script):
    """12 steps into the buffer: actions are for goals that change after 5 and 10, and those are what is stored."""
    sizes = dict(num_envs=4, unroll_length=4, env_steps_per_update=8, learning_starts=16, buffer_size=12)

    def explore(goal_steps):
        args = make_args(script, goal_steps=goal_steps, episode_length=20, **sizes)
        runner = jax.jit(load(script).make_train(args, Plane())[0])(jax.random.key(0))
        return runner.buffer.data, runner.env_state.obs[:, 2:]

    (data, own), (steady, _) = explore(5), explore(0)
    np.testing.assert_array_equal(steady.goal, np.broadcast_to(own, (12, 4, 2)))
    np.testing.assert_array_equal(data.goal, np.stack([np.roll(own, -(step // 5), axis=0) for step in range(12)]))
    np.testing.assert_array_equal(data.action[:5], steady.action[:5])
    assert np.any(data.action[5:] != steady.action[5:], axis=-1).all()


class Magnified(Plane):
    """The plane in another unit of length."""

    def __init__(self, unit):
        self.unit, self.goal_reach_thresh, self.dense_reward = unit, unit * Plane.goal_reach_thresh, False

    def get_state(self, physics, control):
        return self.unit * physics["x"]

    def get_goal(self, physics):
        return self.unit * physics["goal"]


@pytest.mark.parametrize("script", SCRIPTS)
def test_units_do_not_matter_where_observations_are_normalized(script):
    """To the bit, for powers of 2, once the statistics are in this unit too."""
    others = {"commanded_goals": 0.5, "goal_noise": 0.3} if script == "crl_jax" else {}
    args = make_args(script, num_envs=16, unroll_length=12, total_timesteps=600, buffer_size=60, **others)
    seen = np.random.default_rng(0).uniform(-1, 1, (2, 100, 2)).astype(np.float32)

    def learn(unit, args):
        init, train = load(script).make_train(args, Magnified(unit))
        runner = init(jax.random.key(0))
        obs = unit * np.concatenate(seen, axis=-1) if script == "ppo_jax" else list(unit * seen)
        statistics = running_statistics.update(runner.statistics, obs)
        if args.normalize_observations:
            runner = runner._replace(statistics=statistics)
        return train(runner, 1)[0]

    small, large = (jax.jit(partial(learn, unit, args))() for unit in (1, 8))
    jax.tree.map(np.testing.assert_array_equal, small.params, large.params)
    jax.tree.map(lambda x, y: np.testing.assert_array_equal(8 * x, y), small.statistics.std, large.statistics.std)
    assert np.all(jax.tree.leaves(small.statistics.mean)[0][:2] != seen[0].mean(0))  # they follow what is seen
    as_they_are = dataclasses.replace(args, normalize_observations=False)
    small, large = (jax.jit(partial(learn, unit, as_they_are))() for unit in (1, 8))
    small_bias, large_bias = (runner.params["actor"]["params"]["Dense_0"]["bias"] for runner in (small, large))
    assert np.any(small_bias != large_bias)
    assert all(np.all(x == 1) for x in jax.tree.leaves(large.statistics.std))
    assert not any(np.any(x) for x in jax.tree.leaves(large.statistics.mean))


@pytest.mark.parametrize("script", SCRIPTS[:3])
def test_statistics_are_of_all_that_was_seen(script):
    """States, and goals that these achieve; what hardly moves, in a goal less than the threshold, is not blown up."""
    args = make_args(script, num_envs=16, unroll_length=12, learning_starts=48, buffer_size=60)
    env = Plane()
    runner = jax.jit(load(script).make_train(args, env)[0])(jax.random.key(0))
    data = jax.tree.map(lambda x: np.float64(x[: runner.buffer.num_steps]), runner.buffer.data)
    assert len(data.state) == 36
    achieved = data.achieved if script == "crl_jax" else env.achieved(data.next_state)
    for i, x in enumerate((data.state, achieved)):
        np.testing.assert_allclose(runner.statistics.mean[i], x.mean((0, 1)), rtol=1e-4)
        np.testing.assert_allclose(runner.statistics.std[i], x.std((0, 1)), rtol=1e-4)
    still = Magnified(2**-10)
    for threshold in (0.001, 3.0):
        still.goal_reach_thresh = threshold
        std = jax.jit(load(script).make_train(args, still)[0])(jax.random.key(0)).statistics.std
        assert np.all(std[0] == np.float32(0.01)) and np.all(std[1] == np.float32(max(0.01, threshold)))


def test_an_ant_in_a_maze_trains_on_springs():
    """Which is what it takes on a CPU, where the test above takes MuJoCo."""
    crl_jax = load("crl_jax")
    init, train = crl_jax.make_train(make_args("crl_jax", env_id="ant_ball_u_maze", backend=None))
    runner, metrics = jax.jit(lambda key: train(init(key), 1))(jax.random.key(0))
    data = runner.buffer.data
    assert all(np.isfinite(x).all() for x in jax.tree.leaves((metrics, runner.params, data)))
    assert np.all(data.state[1, :, :29] != data.state[0, :, :29])  # the ant moves; nobody touches the ball yet


@pytest.mark.parametrize(("script", "anneal_lr"), [*((script, True) for script in SCRIPTS), ("crl_jax", False)])
def test_learning_ends_with_the_run_if_its_rate_is_annealed(script, anneal_lr):
    """Nothing changes after the fourth epoch, the last, though one may go on."""
    module = load(script)
    init, train = module.make_train(make_args(script, anneal_lr=anneal_lr, total_timesteps=120, num_evals=4))
    one_epoch = jax.jit(train, static_argnums=1)
    runner, params = jax.jit(init)(jax.random.key(0)), []
    for _ in range(5):
        runner, _ = one_epoch(runner, 1)
        params.append(np.concatenate([x.ravel() for x in jax.tree.leaves(runner.params)]))
    change = np.abs(np.diff(params, axis=0)).mean(1)
    if anneal_lr:
        assert change[-1] == 0 and np.all(np.diff(change) < 0)
    else:
        assert change[-1] > change[0] / 3


class Holes(Line):
    """Its episode ends in every other stretch of 5 cm."""

    def pipeline_step(self, physics, control):
        x = physics["x"] + control
        return {"x": x, "ended": (jnp.floor(20 * x) % 2 == 0).all()}


@pytest.mark.parametrize("script", ["crl_jax", "sac_her_jax", "td3_her_jax"])
def test_the_buffer_tells_an_end_of_the_task_from_one_of_length(script):
    args = make_args(script, num_envs=16, episode_length=3, learning_starts=40, buffer_size=40)
    buffer = jax.jit(load(script).make_train(args, Holes())[0])(jax.random.key(0)).buffer
    data, ids = jax.tree.map(lambda x: np.array(x[:36]), (buffer.data, buffer.traj_id))
    after = data.achieved if script == "crl_jax" else data.next_state
    np.testing.assert_array_equal(data.terminated, np.floor(20 * after[..., 0]) % 2 == 0)
    assert 50 < data.terminated[:-1].sum() < ids[-1].sum()  # the others were cut off


@pytest.mark.parametrize("script", ["sac_her_jax", "td3_her_jax"])
def test_a_chunk_has_no_shaped_reward_in_hindsight(script):
    for env in (None, envs.make("reacher", "mujoco", dense_reward=True)):
        args = make_args(script, dense_reward=env is None, action_chunk=2)
        with pytest.raises(envs.UsageError, match="--dense-reward wants --action-chunk 1"):
            load(script).make_train(args, env)


CHANGES = {  # another value for every flag, but for those that only `main` reads
    "crl_jax": dict(
        logsumexp_penalty=0.5, energy="l2", contrastive_loss="bwd_infonce", repr_dim=5, random_goals=0.25,
        commanded_goals=0.25, goal_noise=0.5, best_of=2, alpha_lr=1e-2, target_entropy=-2.0,
    ),
    "sac_her_jax": dict(
        dense_reward=True, her_ratio=0.5, her_strategy="final", tau=0.1, alpha_lr=1e-2, target_entropy=-2.0,
    ),
    "td3_her_jax": dict(
        dense_reward=True, her_ratio=0.5, her_strategy="final", tau=0.1, policy_delay=1, smoothing_noise=0.1,
        smoothing_clip=0.1, preactivation_penalty=0.1, exploration_noise=0.1,
    ),
    "ppo_jax": dict(
        dense_reward=True, gae_lambda=0.5, update_epochs=3, num_minibatches=4, clip_eps=0.3, entropy_coef=0.1,
        normalize_advantage=False, normalize_observations=False, learning_rate=1e-2, max_grad_norm=1.0,
    ),
}  # fmt: skip
CHANGES_OF_ALL = dict(
    env_id="simple_big_maze", layout="##### #r.g# #####", eval_env_id="simple_u_maze_eval", backend="spring",
    total_timesteps=320, num_envs=8,
    episode_length=3, unroll_length=8, eval_noise=0.5, action_chunk=2, num_evals=2, num_eval_envs=5, gamma=0.5,
    width=9, depth=2, activation="swish", layer_norm=True, residual=True, anneal_lr=True,
)  # fmt: skip
CHANGES_OFF_POLICY = dict(
    env_steps_per_update=4, batch_size=17, buffer_size=12, learning_starts=4, actor_lr=1e-2, critic_lr=1e-2,
    noise_correlation=0.5, goal_steps=2, normalize_observations=False,
)  # fmt: skip


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_flag_changes_the_program(script):
    """No dead flags: another value of any of them compiles to another program, but for those that only `main` reads."""
    module = load(script)
    changes = CHANGES_OF_ALL | CHANGES[script] | (CHANGES_OFF_POLICY if script != "ppo_jax" else {})
    of_main = {field.name for field in dataclasses.fields(harness.RunArgs)}  # tests/harness has them
    names = {field.name for field in dataclasses.fields(module.Args)}
    assert changes.keys() | of_main == names
    base = make_args(
        script, env_id="simple_u_maze", total_timesteps=160, num_envs=4, learning_starts=12, buffer_size=32,
        episode_length=10, num_evals=4, num_eval_envs=3, batch_size=16, update_epochs=2, anneal_lr=False,
    )  # fmt: skip

    def program(args, env):
        init, train = module.make_train(args, env)
        num_epochs = module.make_schedule(args).num_epochs
        traced = jax.make_jaxpr(lambda key: train(init(key), num_epochs))(jax.random.key(0))
        constants = [
            np.asarray(x).tobytes() for x in traced.consts if not jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
        ]
        return re.sub("0x[0-9a-f]+", "", str(traced.jaxpr)), constants  # but for the addresses of functions

    line, of_task = Line(), {"env_id", "layout", "eval_env_id", "backend", "dense_reward"}  # line is traced sooner
    deep = dataclasses.replace(base, depth=4)  # which residual networks ask for; others are traced sooner without
    for args, env, names in (
        (base, None, of_task & changes.keys()),
        (base, line, changes.keys() - of_task - {"residual"}),
        (deep, line, {"residual"}),
    ):
        original = program(args, env)
        assert program(args, env) == original
        for name in names:
            assert program(dataclasses.replace(args, **{name: changes[name]}), env) != original, name


@pytest.mark.parametrize("script", SCRIPTS)
def test_a_sweep_over_flags_is_one_program(script):
    """All flags that are floats can be vmapped over; CRL's trainings are then those of each setting by itself."""
    module = load(script)
    args = make_args(script)
    flags = {f.name: float(getattr(args, f.name)) for f in dataclasses.fields(args) if f.type in (float, "float")}
    assert len(flags) > 5

    def final_params(flags):
        init, train = module.make_train(dataclasses.replace(args, **flags), Line())
        return train(init(jax.random.key(0)), 1)[0].params

    settings = flags, {name: 0.8 * value + 0.1 for name, value in flags.items()}
    sweep = jax.jit(jax.vmap(final_params)).trace(jax.tree.map(lambda *x: np.float32(x), *settings))
    if script == "crl_jax":
        swept = sweep.lower().compile()(jax.tree.map(lambda *x: np.float32(x), *settings))
        for i, setting in enumerate(settings):
            alone = jax.jit(partial(final_params, setting))()
            jax.tree.map(lambda a, b: np.testing.assert_allclose(a[i], b, rtol=1e-3, atol=1e-5), swept, alone)


ACCELERATORS = "cuda", "tpu"


@pytest.mark.parametrize(("backend", "env_id"), [("generalized", "reacher"), ("spring", "ant"), ("mjx", "cheetah")])
def test_physics_lowers_for_accelerators(backend, env_id):
    """The benchmark's own pipelines, on a machine without an accelerator."""
    env = envs.wrap(envs.make(env_id, backend), 2, 5)
    step = jax.jit(lambda key, action: env.step(env.reset(key), action))
    arguments = jax.eval_shape(lambda: (jax.random.key(0), jax.numpy.zeros((2, env.action_size))))
    assert jax.export.export(step, platforms=ACCELERATORS)(*arguments).platforms == ACCELERATORS


@pytest.mark.parametrize("script", SCRIPTS)
def test_every_script_lowers_for_accelerators(script):
    """Both functions of a training."""
    init, train = load(script).make_train(make_args(script, learning_starts=12), Line())
    key = jax.ShapeDtypeStruct((), jax.random.key(0).dtype)
    runner = jax.eval_shape(init, key)
    functions = (jax.jit(init), key), (jax.jit(lambda runner: train(runner, 1)), runner)
    exports = [jax.export.export(function, platforms=ACCELERATORS)(argument) for function, argument in functions]
    assert all(exported.platforms == ACCELERATORS for exported in exports)
    loops = ["stablehlo.while" in exported.mlir_module() for exported in exports]
    assert loops == [script != "ppo_jax", True]  # PPO has no warm-up


def part(module, name):
    """Source of a name of the module, or of a function inside `make_train`."""
    if hasattr(module, name):
        return inspect.getsource(getattr(module, name))
    source = inspect.getsource(module.make_train)
    start = source.index(f"    def {name}(")
    end = source.find("\n    def ", start + 1)
    return source[start : end if end > 0 else None].strip()


@pytest.mark.parametrize(("one", "other"), list(itertools.combinations(SCRIPTS, 2)))
def test_what_scripts_share_is_the_same_word_for_word(one, other):
    one, other = map(load, (one, other))
    shared = ["Layer", "ResidualBlock", "MLP", "Schedule", "epoch", "main"]
    if "ppo" not in one.__name__ + other.__name__:
        shared += ["Buffer", "buffer_init", "buffer_add", "unroll"]
        if "crl" not in one.__name__ + other.__name__:
            shared += ["Transition", "sample_transitions", "q_values"]
        if "td3" not in one.__name__ + other.__name__:
            shared += ["sample_action", "alpha_loss", "make_schedule", "act"]
    for name in shared:
        # CRL never looks at a reward, and its transitions have other fields.
        texts = {part(module, name) for module in (one, other)}
        texts = {text.replace(", args.dense_reward", "").replace(", OF_TASKS", "") for text in texts}
        if name == "unroll" and "crl" in one.__name__ + other.__name__:
            texts = {
                text[: text.index("        def step")] + text[text.index("        key, noise_key") :] for text in texts
            }
            achieved = "env.achieved(transitions.next_state)", "transitions.achieved"
            texts = {text.replace(*achieved) for text in texts}
        assert len(texts) == 1, name


def test_flags_of_one_name_have_one_meaning():
    """The same default, but where the algorithms want another."""
    differ = {"exp_name", "gamma", "eval_noise", "target_entropy", "anneal_lr"}
    fields = [{f.name: f for f in dataclasses.fields(load(script).Args)} for script in SCRIPTS]
    for one, other in itertools.combinations(fields, 2):
        for name in (one.keys() & other.keys()) - differ:
            assert (one[name].type, one[name].default) == (other[name].type, other[name].default), name
