"""As pi05_b1k, with one more image: where the objects of the skill under way are, which only the 2025 data tell.

    uv run scripts/train.py pi05_b1k_seg --exp-name all50 --data.root DIR --fsdp 8

Needs the data set's seg_instance_id videos of the head camera, meta/episodes and annotations. No evaluator knows the
objects of the current skill, so in serving the image is masked.
"""

import dataclasses

from configs import pi05_b1k

CONFIG = dataclasses.replace(
    pi05_b1k.CONFIG,
    data=dataclasses.replace(pi05_b1k.CONFIG.data, modalities=("rgb", "segmentation")),
)
