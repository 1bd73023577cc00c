"""openpi-comet's pre-training on twelve tasks of 2025: a list of tasks in one recipe. pi05_b1k is that on all fifty.

    uv run scripts/train.py pi05_b1k_pt12 --data.root DIR

Source of the tasks and the numbers: openpi-comet at 4bb2aa7 (tasks 0, 1, 6, 17, 18, 22, 30, 32, 34, 35, 40 and 45).
"""

import dataclasses

from configs.pi05_b1k import CONFIG as ALL_TASKS

CONFIG = dataclasses.replace(
    ALL_TASKS,
    data=dataclasses.replace(
        ALL_TASKS.data,
        tasks=(
            "turning_on_radio",
            "picking_up_trash",
            "hiding_Easter_eggs",
            "bringing_water",
            "tidying_bedroom",
            "putting_shoes_on_rack",
            "setting_the_fire",
            "wash_a_baseball_cap",
            "hanging_pictures",
            "attach_a_camera_to_a_tripod",
            "make_microwave_popcorn",
            "cook_hot_dogs",
        ),
    ),
)
