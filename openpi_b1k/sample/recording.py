"""Expert episodes of the sample world."""

import dataclasses
from collections.abc import Collection

import numpy as np

from openpi_b1k.config.data import Modality
from openpi_b1k.robots.layout import Layout
from openpi_b1k.sample.render import render
from openpi_b1k.sample.scene import measure
from openpi_b1k.sample.world import GOALS, HALF_RANGE, Expert, Goal, World, arm_joints

HOLD_STEPS = 4
"""Steps recorded after the button is pressed."""
SHARE_NEAR, NEAR = 0.4, 0.15
"""Share of demonstrations that start within NEAR m of the button, along either axis."""
SHARE_CLOSED = 0.25
"""Share of demonstrations that start with the gripper closed."""
DEMO_SEED = 0
"""First entry of every demonstration's seed; evaluation uses others, so its layouts are unseen."""


@dataclasses.dataclass(frozen=True)
class Recording:
    """One demonstration. Row t is what was seen before action t, and action t."""

    goal: Goal
    instance: int
    proprio: np.ndarray
    """float32 [n, proprio size]"""
    actions: np.ndarray
    """float32 [n, 23]"""
    frames: dict[str, np.ndarray]
    """Camera -> uint8 [n, size, size, 3]."""
    pressed_at: int
    """Row whose action pressed the button."""
    depth: dict[str, np.ndarray]
    """Camera -> float32 [n, size, size] in m; empty if it was not asked for."""
    instances: dict[str, np.ndarray]
    """Camera -> uint8 [n, size, size], numbers of `scene.MESHES`; empty if segmentation was not asked for."""

    @property
    def length(self) -> int:
        """Rows."""
        return len(self.actions)


def record(instance: int, goal: Goal, proprio_layout: Layout, modalities: Collection[Modality] = ("rgb",)) -> Recording:
    """Returns the expert's episode `instance` of a goal; the modalities besides RGB say what else is measured."""
    world = demo_world(goal, instance)
    expert = Expert(world)
    proprio, actions, frames, depths, instances, pressed_at = [], [], [], [], [], -1
    while pressed_at < 0 or len(actions) <= pressed_at + HOLD_STEPS:
        proprio.append(world.proprio(proprio_layout))
        frames.append(render(world))
        if len(modalities) > 1:
            depth, shown = measure(world)
            depths.append(depth)
            instances.append(shown)
        actions.append(expert.action())
        world.step(actions[-1])
        if world.is_success and pressed_at < 0:
            pressed_at = len(actions) - 1
    return Recording(
        goal=goal,
        instance=instance,
        proprio=np.stack(proprio),
        actions=np.stack(actions),
        frames=_by_camera(frames),
        pressed_at=pressed_at,
        depth=_by_camera(depths) if "depth" in modalities else {},
        instances=_by_camera(instances) if "segmentation" in modalities else {},
    )


def _by_camera(rows: list[dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {camera: np.stack([row[camera] for row in rows]) for camera in rows[0]}


def demo_world(goal: Goal, instance: int) -> World:
    """Returns the world at the start of a demonstration."""
    world = World(goal, (DEMO_SEED, instance))
    disturb(world, np.random.default_rng((DEMO_SEED, instance, goal.task_index, 1)))
    return world


def disturb(world: World, rng: np.random.Generator) -> None:
    """Puts some demonstrations where a policy gets by its own mistakes: beside the button, with a closed gripper."""
    hand = world.goal.hand
    if rng.random() < SHARE_NEAR:
        offset = rng.uniform(-NEAR, NEAR, size=2)
        near = np.clip(world.buttons[world.goal.button] + offset, -HALF_RANGE, HALF_RANGE)
        world.arms[hand][:2] = arm_joints(hand, near)
    if rng.random() < SHARE_CLOSED and world.button_under(hand) is None:
        world.fingers[hand] = 0.0


def goals_by_demo(num_demos: int) -> list[tuple[Goal, int]]:
    """Returns (goal, instance) of each demonstration, by task: the goals share them as evenly as possible."""
    counts = [len(range(task, num_demos, len(GOALS))) for task in range(len(GOALS))]
    return [(goal, instance + 1) for goal, count in zip(GOALS, counts, strict=True) for instance in range(count)]
