import dataclasses
import json

import pytest

from configs import pi05_b1k, pi05_b1k_rgbd, pi05_b1k_seg
from openpi_b1k.checkpoints import contents


@pytest.mark.parametrize(
    ("recipe", "starts"),
    [
        (pi05_b1k, []),
        (pi05_b1k_rgbd, ["parameters point_cloud/**: openpi has no encoder"]),
        (pi05_b1k_seg, ["image segmentation: openpi reads the parameters, but"]),
    ],
)
def test_a_checkpoint_says_what_openpi_cannot_read(tmp_path, recipe, starts):
    parts = contents.beyond_openpi(recipe.CONFIG)
    assert [part.startswith(start) for part, start in zip(parts, starts, strict=True)] == [True] * len(starts)
    info = contents.CheckpointInfo(1, 8, "f", False, "1", beyond_openpi=parts)
    (tmp_path / contents.INFO_FILE).write_text(json.dumps(dataclasses.asdict(info)))
    assert contents.read_info(tmp_path) == info


def test_a_checkpoint_from_before_there_were_such_parts_has_none(tmp_path):
    old = dataclasses.asdict(contents.CheckpointInfo(1, 8, "f", False, "1"))
    del old["beyond_openpi"]
    (tmp_path / contents.INFO_FILE).write_text(json.dumps(old))
    assert contents.read_info(tmp_path).beyond_openpi == ()
