"""A Franka Panda arm reaches, grasps, pushes a cube, or carries it from bin to bin.

The arm is the public kinematics, masses and inertias of the Panda with simple shapes in place of its meshes.
"""

import jax
import jax.numpy as jnp
import mujoco
import numpy as np
from brax import base, math

from envs.base import BOX, CAPSULE, GREEN, MUJOCO, SLIDE, SPHERE, GoalEnv

_TURN = (2**-0.5, 2**-0.5, 0, 0)  # a quarter turn about x, and back
_BACK = (2**-0.5, -(2**-0.5), 0, 0)
_LINKS = (  # each in the frame of the one before, and turning about its own z
    # position, quaternion, joint limits, mass, centre of mass, inertia (xx, yy, zz, xy, xz, yz)
    ((0, 0, 0.333), (1, 0, 0, 0), (-2.8973, 2.8973), 4.970684, (0.003875, 0.002081, -0.04762),
     (0.70337, 0.70661, 0.009117, -0.000139, 0.006772, 0.019169)),
    ((0, 0, 0), _BACK, (-1.7628, 1.7628), 0.646926, (-0.003141, -0.02872, 0.003495),
     (0.007962, 0.02811, 0.025995, -0.003925, 0.010254, 0.000704)),
    ((0, -0.316, 0), _TURN, (-2.8973, 2.8973), 3.228604, (0.027518, 0.039252, -0.066502),
     (0.037242, 0.036155, 0.01083, -0.004761, -0.011396, -0.012805)),
    ((0.0825, 0, 0), _TURN, (-3.0718, -0.0698), 3.587895, (-0.05317, 0.104419, 0.027454),
     (0.025853, 0.019552, 0.028323, 0.007796, -0.001332, 0.008641)),
    ((-0.0825, 0.384, 0), _BACK, (-2.8973, 2.8973), 1.225946, (-0.011953, 0.041065, -0.038437),
     (0.035549, 0.029474, 0.008627, -0.002117, -0.004037, 0.000229)),
    ((0, 0, 0), _TURN, (-0.0175, 3.7525), 1.666555, (0.060149, -0.014117, -0.010517),
     (0.001964, 0.004354, 0.005433, 0.000109, -0.001158, 0.000341)),
    ((0.088, 0, 0), _TURN, (-2.8973, 2.8973), 0.735522, (0.010517, -0.004252, 0.061597),
     (0.012516, 0.010027, 0.004815, -0.000428, -0.001196, -0.000741)),
)  # fmt: skip
_STIFFNESS = (4500, 4500, 3500, 3500, 2000, 2000, 2000)
_FORCE_LIMITS = (87, 87, 87, 87, 12, 12, 12)
_POSE = (1.571, 0.742, 0, -1.571, 0, 3.054, 1.449)  # joint angles at the start
_FINGERS = ("left_finger", "right_finger")
_FINGER_OPEN = 0.04  # at the start, metres each
_FINGER_GAIN, _FINGER_STIFFNESS, _FINGER_DAMPING, _FINGER_FORCE = 0.09804, 500.0, 50.0, 500.0
_FINGERTIP = np.array([0.0, 0.005, 0.07], np.float32)  # in a finger's frame

# The four actions that move the arm command angles of joints 1, 2, 4 and 6 between these; 3, 5 and 7 are held.
_MOVED = np.array([0, 1, 3, 5])
_LOW = np.array([0.3491, 0.0, -3.0718, 2.3562], np.float32)
_HIGH = np.array([2.7925, 1.48353, -0.0698, 3.7525], np.float32)
_HELD = np.array([0, 0, 0, 0, 0, 0, 1.4487], np.float32)

_GREY, _WHITE, _BLUE, _RED = (0.4, 0.4, 0.4, 1), (0.9, 0.9, 0.9, 1), (0.1, 0.3, 0.8, 1), (0.8, 0.1, 0.1, 1)
_YELLOW = (0.95, 0.75, 0.1, 1)


def _add_servo(spec, joint, stiffness, damping, force, gain=None):
    """Holds the joint where its control says, with at most `force`."""
    servo = spec.add_actuator(target=joint.name, trntype=mujoco.mjtTrn.mjTRN_JOINT)
    servo.biastype = mujoco.mjtBias.mjBIAS_AFFINE
    servo.gainprm[0], servo.biasprm[1:3] = stiffness if gain is None else gain, [-stiffness, -damping]
    # A limit of the joint, not of the servo: while a servo is at its limit, MuJoCo leaves its damping out of the
    # implicit integration and mjx does not, and the two would part.
    joint.actfrcrange = [-force, force]


def _add_arm(spec):
    """Adds the seven links and their servos; returns the last link, the flange."""
    body = spec.worldbody
    for i, (pos, quat, limits, mass, centre, inertia) in enumerate(_LINKS):
        # The way from the previous joint to this one as a capsule, for the looks.
        if np.linalg.norm(pos) > 0:
            _add_shape(body, CAPSULE, _WHITE, fromto=[0, 0, 0, *pos], size=[0.05, 0, 0])
        body = body.add_body(name=f"link{i + 1}", pos=pos, quat=quat)
        body.mass, body.ipos, body.fullinertia, body.explicitinertial = mass, centre, inertia, True
        joint = body.add_joint(name=f"joint{i + 1}", axis=[0, 0, 1], range=limits, armature=0.1, damping=[5, 0, 0])
        _add_shape(body, SPHERE, _GREY, size=[0.055, 0, 0])
        _add_servo(spec, joint, _STIFFNESS[i], _STIFFNESS[i] / 10, _FORCE_LIMITS[i])
    return body


def _add_shape(body, kind, rgba, **attributes):
    """A geom without mass that touches only what contact pairs say."""
    return body.add_geom(type=kind, rgba=rgba, contype=0, conaffinity=0, **{"density": 0} | attributes)


def _add_fingers(spec, hand):
    for name, quat in zip(_FINGERS, ((1, 0, 0, 0), (0, 0, 0, 1)), strict=True):
        finger = hand.add_body(name=name, pos=[0, 0, 0.0584], quat=quat)
        finger.mass, finger.ipos, finger.inertia = 0.015, [0, 0, 0], [2.375e-6, 2.375e-6, 7.5e-7]
        finger.explicitinertial = True
        joint = finger.add_joint(
            name=name, type=SLIDE, axis=[0, 1, 0], range=[0, 0.05], armature=0.1, damping=[5, 0, 0]
        )
        _add_shape(finger, BOX, _GREY, name=name, size=[0.015, 0.005, 0.04], pos=[0, 0.0055, 0.035])
        _add_servo(spec, joint, _FINGER_STIFFNESS, _FINGER_DAMPING, _FINGER_FORCE, _FINGER_GAIN)
    coupling = spec.add_equality(
        type=mujoco.mjtEq.mjEQ_JOINT, name1=_FINGERS[0], name2=_FINGERS[1], objtype=mujoco.mjtObj.mjOBJ_JOINT
    )
    coupling.data[:2] = [0, 1]
    coupling.solref, coupling.solimp[:3] = [0.005, 1], [0.95, 0.99, 0.001]


def _add_pairs(spec, first, others):
    """Lets the geom `first` touch `others`."""
    for other in others:
        spec.add_pair(geomname1=first, geomname2=other, condim=3)


class _Arm(GoalEnv):
    """What the tasks of the arm share: a table, the arm, and perhaps fingers, a cube and a marker of the goal."""

    goal_reach_thresh = 0.1
    goal_reach_easy = 0.3
    goal_reach_hard = 0.03
    episode_length = 150
    backends = MUJOCO
    benchmark_backend = "mjx"
    view = (-120, -35)
    marker_colour = GREEN
    action_size = 5
    fingers = True
    pose = (*_POSE, _FINGER_OPEN, _FINGER_OPEN)  # of the robot's joints at the start
    cube = (0.0, 0.6)  # centre of the square in which the cube starts, xy
    cube_noise = 0.1  # half side of that square
    goal = (0.0, 0.6, 0.03)
    goal_noise = (0.1, 0.1, 0.0)

    def build(self, backend: str) -> tuple[mujoco.MjSpec, int]:
        spec = mujoco.MjSpec()
        spec.compiler.degree, spec.compiler.fusestatic = False, True
        spec.option.timestep = 0.002
        spec.option.integrator = mujoco.mjtIntegrator.mjINT_IMPLICITFAST
        if backend == "mjx":
            spec.option.iterations, spec.option.ls_iterations = 6, 12
        spec.worldbody.add_light(type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL, pos=[0, 0, 2], dir=[0, 0.3, -1])
        floor = mujoco.mjtGeom.mjGEOM_PLANE
        _add_shape(spec.worldbody, floor, (0.6, 0.65, 0.7, 1), name="table", size=[2.8, 2.4, 0.1])
        self.add_things(spec)
        self.add_robot(spec)
        self.add_contacts(spec)
        return spec, 25

    def add_things(self, spec: mujoco.MjSpec):
        """Adds the cube and the marker of its goal."""
        cube = spec.worldbody.add_body(name="cube", pos=[*self.cube, 0.07])
        cube.add_freejoint()
        _add_shape(cube, BOX, _YELLOW, name="cube", size=[0.03] * 3, mass=0.216)
        self.add_marker(spec, BOX)

    def add_marker(self, spec: mujoco.MjSpec, shape):
        marker = spec.worldbody.add_body(name="marker", pos=self.goal, gravcomp=1)
        marker.add_freejoint()
        _add_shape(marker, shape, self.marker_colour, size=[0.03] * 3, mass=0.1)

    def add_robot(self, spec: mujoco.MjSpec):
        flange = _add_arm(spec)
        _add_shape(flange, CAPSULE, _WHITE, fromto=[0, 0, 0, 0, 0, 0.107], size=[0.04, 0, 0])
        hand = flange.add_body(name="hand", pos=[0, 0, 0.107], quat=[0.9238795, 0, 0, -0.3826834])
        _add_shape(hand, CAPSULE, _WHITE, name="hand", fromto=[0, -0.06, 0.035, 0, 0.06, 0.035], size=[0.04, 0, 0])
        if self.fingers:
            _add_fingers(spec, hand)

    def add_contacts(self, spec: mujoco.MjSpec):
        """Says which geoms can touch each other: only these."""
        _add_pairs(spec, "cube", ("table", "hand", *_FINGERS))
        _add_pairs(spec, "table", ("hand", *_FINGERS))
        _add_pairs(spec, "left_finger", ["right_finger"])

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        cube_key, goal_key = jax.random.split(key)
        cube = jnp.array(self.cube) + self.cube_noise * jax.random.uniform(cube_key, (2,), minval=-1)
        q = self.sys.init_q.at[:2].set(cube).at[7:10].set(self.draw_goal(goal_key))
        return q.at[14:].set(jnp.array(self.pose)), jnp.zeros(self.sys.qd_size())

    def draw_goal(self, key: jax.Array) -> jax.Array:
        return jnp.array(self.goal) + jnp.array(self.goal_noise) * jax.random.uniform(key, (3,), minval=-1)

    def get_control(self, physics: base.State, action: jax.Array) -> jax.Array:
        angles = _LOW + (action[:4] + 1) / 2 * (_HIGH - _LOW)
        control = jnp.array(_HELD).at[_MOVED].set(angles)
        return jnp.concatenate([control, self.finger_control(action)]) if self.fingers else control

    def finger_control(self, action: jax.Array) -> jax.Array:
        """Closes the fingers where the last action is positive and opens them elsewhere, (2,)."""
        return jnp.where(action[-1:] > 0, jnp.zeros(2), jnp.full(2, 255.0))

    def finger_force(self, physics: base.State, control: jax.Array) -> jax.Array:
        """A tenth of the mean force of the two fingers' servos, (1,)."""
        q, qd = physics.q[-2:], physics.qd[-2:]
        force = _FINGER_GAIN * control[-2:] - _FINGER_STIFFNESS * q - _FINGER_DAMPING * qd
        return 0.1 * jnp.mean(jnp.clip(force, -_FINGER_FORCE, _FINGER_FORCE), keepdims=True)

    def finger_distance(self, physics: base.State) -> jax.Array:
        left, right = (physics.x.pos[self.link(name)] for name in _FINGERS)
        return jnp.linalg.norm(left - right, keepdims=True)

    def get_flange(self, physics: base.State) -> list[jax.Array]:
        """The arm's 7 angles, and its flange's position and velocity."""
        first = 14 if self.fingers else 7
        flange = self.link("link7")
        return [physics.q[first : first + 7], physics.x.pos[flange], physics.xd.vel[flange]]

    def get_goal(self, physics: base.State) -> jax.Array:
        return physics.q[7:10]


class ArmReach(_Arm):
    """State (13): 7 joint angles, flange's position and velocity. Goal: the flange's position."""

    state_dim = 13
    goal_indices = (7, 8, 9)
    episode_length = 100
    action_size = 4
    fingers = False
    pose = _POSE
    goal = (0.0, 0.5, 0.3)
    goal_noise = (0.2, 0.2, 0.2)

    def add_things(self, spec: mujoco.MjSpec):
        self.add_marker(spec, SPHERE)

    def add_contacts(self, spec: mujoco.MjSpec):
        _add_pairs(spec, "table", ["hand"])

    def start(self, key: jax.Array) -> tuple[jax.Array, jax.Array]:
        q = self.sys.init_q.at[:3].set(self.draw_goal(key)).at[7:].set(jnp.array(self.pose))
        return q, jnp.zeros(self.sys.qd_size())

    def get_state(self, physics: base.State, control: jax.Array) -> jax.Array:
        return jnp.concatenate(self.get_flange(physics))

    def get_goal(self, physics: base.State) -> jax.Array:
        return physics.q[:3]


class ArmGrasp(_Arm):
    """State (24): cube xyz, 7 joint angles, flange's position and velocity, both fingertips' positions, their distance,
    the fingers' force. Goal: fingertips to both sides of the cube, wherever it is, and their distance."""

    state_dim = 24
    goal_indices = (16, 17, 18, 19, 20, 21, 22)
    goal_reach_thresh = 0.05  # from the fingertips' midpoint to the cube
    goal_reach_easy = 0.15
    goal_reach_hard = 0.02
    distance_thresholds = (("success", 0.02), ("success_easy", 0.05), ("success_hard", 0.005))
    episode_length = 100
    cube_noise = 0.3
    marker_colour = (0, 0, 0, 0)  # the goal is at the cube

    def get_state(self, physics: base.State, control: jax.Array) -> jax.Array:
        fingers = [physics.x.take(self.link(name)) for name in _FINGERS]
        left, right = (finger.pos + math.rotate(_FINGERTIP, finger.rot) for finger in fingers)
        distance = jnp.linalg.norm(left - right, keepdims=True)
        force = self.finger_force(physics, control)
        return jnp.concatenate([physics.q[:3], *self.get_flange(physics), left, right, distance, force])

    def get_goal(self, physics: base.State) -> jax.Array:
        aside = jnp.array([0.0375, 0.0, 0.0])
        return jnp.concatenate([physics.q[:3] + aside, physics.q[:3] - aside, jnp.array([0.075])])

    def goal_metrics(self, achieved: jax.Array, goal: jax.Array) -> dict[str, jax.Array]:
        metrics = super().goal_metrics(achieved[:6].reshape(2, 3).mean(0), goal[:6].reshape(2, 3).mean(0))
        for name, threshold in self.distance_thresholds:
            metrics[name] *= jnp.abs(achieved[6] - goal[6]) < threshold
        return metrics


class ArmPush(_Arm):
    """State (18): cube xyz, 7 joint angles, flange's position and velocity, distance of the fingers, their force.
    Goal: the cube's position."""

    state_dim = 18
    goal_indices = (0, 1, 2)
    cube = (-0.1, 0.6)
    goal = (0.1, 0.6, 0.03)

    def add_things(self, spec: mujoco.MjSpec):
        super().add_things(spec)
        self.mark(spec, self.cube, self.cube_noise, _BLUE)
        self.mark(spec, self.goal, self.goal_noise[0], _RED)

    def mark(self, spec: mujoco.MjSpec, centre, half_side, rgba):
        """Shows a region on the table."""
        pos, size = [*centre[:2], 0.0005], [half_side, half_side, 0.0005]
        _add_shape(spec.worldbody, BOX, rgba, pos=pos, size=size)

    def get_state(self, physics: base.State, control: jax.Array) -> jax.Array:
        fingers = [self.finger_distance(physics), self.finger_force(physics, control)]
        return jnp.concatenate([physics.q[:3], *self.get_flange(physics), *fingers])


class ArmPushHard(ArmPush):
    """`ArmPush` with larger regions, farther apart."""

    cube = (-0.25, 0.65)
    cube_noise = 0.25
    goal = (0.25, 0.65, 0.03)
    goal_noise = (0.25, 0.25, 0.0)


class ArmBinpick(ArmPush):
    """As `ArmPush`, but the cube must be carried from one bin to another."""

    cube = (-0.15, 0.6)
    cube_noise = 0.07
    goal = (0.17, 0.6, 0.03)
    goal_noise = (0.005, 0.005, 0.0)
    bins = (-0.17, 0.17)  # x of their centres
    bin_half_side = 0.14  # from a bin's centre to the middle of its walls

    def add_things(self, spec: mujoco.MjSpec):
        super().add_things(spec)
        spec.option.impratio = 10
        self.walls = []
        for x, rgba in zip(self.bins, (_BLUE, _RED), strict=True):
            half = self.bin_half_side
            for dx, dy in ((0, -half), (0, half), (half, 0), (-half, 0)):
                self.walls.append(f"wall{len(self.walls)}")
                size = [half + 0.005, 0.005, 0.033] if dx == 0 else [0.005, half - 0.005, 0.033]
                pos = [x + dx, 0.6 + dy, 0.033]
                _add_shape(spec.worldbody, BOX, rgba, name=self.walls[-1], pos=pos, size=size)

    def mark(self, spec: mujoco.MjSpec, centre, half_side, rgba):
        """The bins show the regions."""

    def add_contacts(self, spec: mujoco.MjSpec):
        super().add_contacts(spec)
        for name in ("cube", "hand", *_FINGERS):
            _add_pairs(spec, name, self.walls)


class ArmBinpickHard(ArmBinpick):
    """`ArmBinpick` with larger bins, and goals anywhere in the second."""

    cube = (-0.3, 0.6)
    cube_noise = 0.15
    goal = (0.3, 0.6, 0.03)
    goal_noise = (0.15, 0.15, 0.0)
    bins = (-0.3, 0.3)
    bin_half_side = 0.19


class ArmBinpickHand(ArmBinpick):
    """`ArmBinpick` with a hand that slides through the air in place of an arm.

    State (11): cube xyz, hand's position and velocity, distance of the fingers, their force.
    """

    state_dim = 11
    action_size = 4
    pose = (0.0, 0.6, 0.2, _FINGER_OPEN, _FINGER_OPEN)

    def add_robot(self, spec: mujoco.MjSpec):
        hand = spec.worldbody.add_body(name="hand", gravcomp=1)
        for axis, limits in zip("xyz", ((-0.4, 0.4), (0.35, 0.85), (0.0, 0.3)), strict=True):
            direction = [axis == "x", axis == "y", axis == "z"]
            joint = hand.add_joint(name=f"hand_{axis}", type=SLIDE, axis=direction, range=limits)
            _add_servo(spec, joint, stiffness=1000, damping=100, force=87)
        palm = hand.add_body(name="palm", gravcomp=1, quat=[0, -(2**-0.5), 2**-0.5, 0])  # it points downwards
        shape = {"fromto": [0, -0.06, 0.035, 0, 0.06, 0.035], "size": [0.04, 0, 0], "mass": 0.871}
        _add_shape(palm, CAPSULE, _WHITE, name="hand", **shape)
        _add_fingers(spec, palm)

    def add_contacts(self, spec: mujoco.MjSpec):
        super().add_contacts(spec)
        walls = (
            ((0, 0.35), (0.41, 0.01)),
            ((0, 0.85), (0.41, 0.01)),
            ((-0.4, 0.6), (0.01, 0.24)),
            ((0.4, 0.6), (0.01, 0.24)),
        )
        for i, (pos, size) in enumerate(walls):  # invisible: they keep the cube where the hand can reach it
            _add_shape(spec.worldbody, BOX, (1, 1, 1, 0), name=f"fence{i}", pos=[*pos, 0.15], size=[*size, 0.15])
            _add_pairs(spec, "cube", [f"fence{i}"])

    def get_control(self, physics: base.State, action: jax.Array) -> jax.Array:
        return jnp.concatenate([physics.x.pos[self.link("hand")] + 0.2 * action[:3], self.finger_control(action)])

    def get_flange(self, physics: base.State) -> list[jax.Array]:
        hand = self.link("hand")
        return [physics.x.pos[hand], physics.xd.vel[hand]]
