import numpy as np
import pytest

from openpi_b1k.transforms.padding import PadToModel


def sample(is_pad) -> dict:
    image = np.zeros((4, 4, 3), np.uint8)
    return {
        "images": {"head": image}, "image_masks": {"head": np.True_}, "state": np.ones(23), "raw_state": np.ones(23),
        "prompt_tokens": np.arange(4), "prompt_mask": np.ones(4, bool), "prompt": "wave",
        "actions": np.ones((3, 23)), "is_pad": np.array(is_pad),
    }  # fmt: skip


def test_padding_is_zero_and_does_not_count():
    padded = PadToModel(32, mask_padding=True)(sample([False, False, True]))
    assert padded["state"].tolist() == [1.0] * 23 + [0.0] * 9
    assert padded["actions"].tolist() == [padded["state"].tolist()] * 3
    assert padded["state"].dtype == padded["actions"].dtype == np.float32
    counts = [[True] * 23 + [False] * 9] * 2 + [[False] * 32]
    assert padded["action_mask"].tolist() == counts
    assert "prompt" not in padded
    assert "is_pad" not in padded


def test_without_masks_everything_counts_as_in_openpi():
    assert PadToModel(32, mask_padding=False)(sample([True] * 3))["action_mask"].all()


def test_a_point_cloud_comes_along_as_it_is():
    points = np.ones((16, 4, 3), np.float32)
    assert PadToModel(32, mask_padding=True)(sample([False] * 3) | {"point_cloud": points})["point_cloud"] is points
    assert "point_cloud" not in PadToModel(32, mask_padding=True)(sample([False] * 3))


@pytest.mark.parametrize("mask_padding", [True, False])
def test_a_robot_as_wide_as_the_model(mask_padding):
    padded = PadToModel(23, mask_padding)(sample([False] * 3))
    assert padded["action_mask"].shape == (3, 23)
    assert padded["action_mask"].all()
