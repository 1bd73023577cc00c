"""The sample world behind the evaluator's interface: OmniGibson's observation dict out, its 23-dim action in."""

import numpy as np

from openpi_b1k.config.data import Generation
from openpi_b1k.robots.r1pro import ACTION, CAMERAS, PROPRIO
from openpi_b1k.sample.recording import demo_world, goals_by_demo
from openpi_b1k.sample.render import render
from openpi_b1k.sample.scene import measure
from openpi_b1k.sample.scoring import Scores
from openpi_b1k.sample.world import GOALS, Expert, Goal, World

EVALUATION_SEED = 1_000_000
"""Added to evaluation seeds, so that no layout of a demonstration comes up again."""


class SampleEnvironment:
    """One unseen episode of the sample world."""

    def __init__(self, generation: Generation, seed: int, episode: int):
        """Lays out episode `episode` of an evaluation seed; the goals take turns."""
        self.goal: Goal = GOALS[episode % len(GOALS)]
        self.world = World(self.goal, (EVALUATION_SEED + seed, episode))
        self.layout = PROPRIO[generation]
        self.scores = Scores(self.world)

    def observation(self) -> dict[str, np.ndarray]:
        """Returns the present observation with the evaluator's keys, shapes and types, unbatched."""
        opaque = {
            name: np.concatenate([image, np.full((*image.shape[:2], 1), 255, np.uint8)], axis=-1)
            for name, image in render(self.world).items()
        }
        depth, _ = measure(self.world)
        return {
            "robot_r1::proprio": self.world.proprio(self.layout),
            **{f"{camera.simulator_name}::rgb": opaque[camera.name] for camera in CAMERAS},
            **{f"{camera.simulator_name}::depth_linear": depth[camera.name] for camera in CAMERAS},
            "task_id": np.array([self.goal.task_index], np.int64),
        }

    def step(self, action: np.ndarray) -> None:
        """Executes one action, float [23]; an episode that is over stays as it is."""
        if not self.world.is_over:
            self.world.step(action)
            self.scores.update()


def mean_demonstration(num_demos: int, num_steps: int) -> np.ndarray:
    """Returns the expert's command averaged over demonstrations at each step, float32 [num_steps, 23].

    Episodes that ended earlier hold their last command.
    """
    total = np.zeros((num_steps, ACTION.size))
    for goal, instance in goals_by_demo(num_demos):
        world = demo_world(goal, instance)
        expert = Expert(world)
        actions = []
        while len(actions) < num_steps and not world.is_over:
            actions.append(expert.action())
            world.step(actions[-1])
        actions += [actions[-1]] * (num_steps - len(actions))
        total += np.stack(actions)
    return (total / num_demos).astype(np.float32)
