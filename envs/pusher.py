"""A seven-joint arm pushes one or two objects over a table, or moves its tip, to a place."""

import jax
import jax.numpy as jnp
import mujoco
from brax import base

from envs.base import GREEN, GoalEnv, load_robot, set_pace

_TIP = "r_wrist_flex_link"  # the body whose origin counts as the arm's tip


def _uniform(key, low, high):
    return jax.random.uniform(key, (len(low),), minval=jnp.array(low), maxval=jnp.array(high))


def _scale_near(thing, goal, distance=0.17):
    """Scales the thing's coordinates where it lies nearer to its goal than that, as the benchmark does. They count from
    where the model has it, so it moves away from there, which need not be away from the goal."""
    norm = jnp.linalg.norm(thing - goal)
    return thing * jnp.where(norm < distance, distance / jnp.maximum(norm, 1e-6), 1.0)


class Pusher(GoalEnv):
    """State (20): 7 joint angles, tip xyz, object xyz, 7 joint velocities. Goal: xyz of the object.

    Objects and goals slide first along y, then along x; their coordinates count from where the model has them.
    """

    state_dim = 20
    goal_indices = (10, 11, 12)
    goal_reach_thresh = 0.1
    goal_reach_hard = 0.05
    benchmark_backend = "generalized"
    view = (-90, -60)
    objects: tuple[str, ...] = ("object",)
    goals: tuple[str, ...] = ("goal",)
    goal_low, goal_high = (-0.55, -0.2), (-0.25, 0.2)  # metres

    def build(self, backend: str) -> tuple[mujoco.MjSpec, int]:
        spec = load_robot("pusher")
        self.add_things(spec)
        for name in self.goals:
            for geom in spec.body(name).geoms:
                geom.rgba = GREEN
        return spec, set_pace(spec, backend, 5, springs=(0.001, 50), gear=20.0)

    def add_things(self, spec: mujoco.MjSpec):
        """Changes the scene, which has an object and a goal."""

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        qd_key, things_key = jax.random.split(key)
        things = self.start_things(things_key)
        qd = jax.random.uniform(qd_key, (7,), minval=-0.005, maxval=0.005)
        return self.sys.init_q.at[7:].set(things), jnp.concatenate([qd, jnp.zeros_like(things)])

    def start_things(self, key: jax.Array) -> jax.Array:
        """Coordinates (y, x) of object and goal, one after the other."""
        thing_key, goal_key = jax.random.split(key)
        thing = _uniform(thing_key, (-0.3, -0.2), (0.0, 0.2))
        goal = _uniform(goal_key, self.goal_low, self.goal_high)
        return jnp.concatenate([_scale_near(thing, goal), goal])

    def get_state(self, physics: base.State, control: jax.Array) -> jax.Array:
        things = [physics.x.pos[self.link(name)] for name in (_TIP, *self.objects)]
        return jnp.concatenate([physics.q[:7], *things, physics.qd[:7]])

    def get_goal(self, physics: base.State) -> jax.Array:
        return jnp.concatenate([physics.x.pos[self.link(name)] for name in self.goals])

    def shaped_reward(self, state: jax.Array, action: jax.Array, next_state: jax.Array, goal: jax.Array) -> jax.Array:
        tip, *things = next_state[7 : 10 + 3 * len(self.objects)].reshape(-1, 3)
        to_goals = jnp.linalg.norm(jnp.stack(things) - goal.reshape(-1, 3), axis=-1)
        from_tip = jnp.linalg.norm(jnp.stack(things) - tip, axis=-1)
        return -to_goals.sum() - 0.1 * jnp.sum(action**2) - 0.5 * from_tip.mean()


class PusherHard(Pusher):
    """Goals from a region around the object's, instead of one beside it."""

    goal_low, goal_high = (-0.65, -0.55), (0.35, 0.45)


class PusherReacher(Pusher):
    """State (17): 7 joint angles, 7 joint velocities, tip xyz. Goal: xyz of the tip; the object is out of the way."""

    state_dim = 17
    goal_indices = (14, 15, 16)

    def start_things(self, key: jax.Array) -> jax.Array:
        return jnp.concatenate([jnp.ones(2), _uniform(key, (-0.3, -0.2), (0.0, 0.2))])

    def get_state(self, physics: base.State, control: jax.Array) -> jax.Array:
        return jnp.concatenate([physics.q[:7], physics.qd[:7], physics.x.pos[self.link(_TIP)]])

    def shaped_reward(self, state: jax.Array, action: jax.Array, next_state: jax.Array, goal: jax.Array) -> jax.Array:
        return GoalEnv.shaped_reward(self, state, action, next_state, goal)


class Pusher2(Pusher):
    """State (23): 7 joint angles, tip xyz, xyz of two objects, 7 joint velocities. Goal: xyz of both objects.

    `success`: both within the threshold; `success_easy`: how many are; `dist`: of the one that is farther away.
    """

    state_dim = 23
    goal_indices = (10, 11, 12, 13, 14, 15)
    goal_reach_hard = None
    objects = ("object", "object2")
    goals = ("goal", "goal2")

    def add_things(self, spec: mujoco.MjSpec):
        spec.copy_during_attach = True
        for name in ("object", "goal"):
            spec.body(name).pos[:2] = 0
            spec.worldbody.add_frame().attach_body(spec.body(name), "", "2")

    def start_things(self, key: jax.Array) -> jax.Array:
        keys = jax.random.split(key, 4)
        thing1 = _uniform(keys[0], (-0.35, 0.25), (-0.05, 0.45))
        thing2 = _uniform(keys[1], (-0.35, 0.45), (-0.05, 0.65))
        goal1 = _uniform(keys[2], (-0.7, -0.15), (0.3, 0.375))
        goal2 = _uniform(keys[3], (-0.7, 0.375), (0.3, 0.9))
        return jnp.concatenate([_scale_near(thing1, goal1), goal1, _scale_near(thing2, goal2), goal2])

    def goal_metrics(self, achieved: jax.Array, goal: jax.Array) -> dict[str, jax.Array]:
        dists = jnp.linalg.norm((achieved - goal).reshape(2, 3), axis=-1)
        near = dists < self.goal_reach_thresh
        return {
            "dist": dists.max(),
            "success": near.all().astype(float),
            "success_easy": near.sum().astype(float),
        }
