"""The generated data sets are read as what they say they are."""

import dataclasses
import itertools

import numpy as np
import pytest

from openpi_b1k.benchmarks import footage, videos
from openpi_b1k.config.data import DataConfig
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.frames.frame_cache import EpisodeFrames
from openpi_b1k.data.frames.video import key_frame_distance
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.robots.r1pro import r1pro

SMALL = {"num_tasks": 2, "episodes_per_task": 3, "num_clips": 2, "num_reels": 2}
CASES = {
    "2025": dataclasses.replace(
        videos.KINDS["2025-gop250"], sizes=(96, 64, 64), encoder=videos.hevc(12, 28), length=48, clip_length=24, **SMALL
    ),
    "2026": dataclasses.replace(videos.KINDS["2026-gop8"], sizes=(96, 64, 64), length=40, clip_length=24, **SMALL),
}
DISTANCES = {"2025": 12, "2026": 8}


@pytest.mark.parametrize("generation", ["2025", "2026"])
def test_a_generated_data_set_opens_and_every_frame_is_there(tmp_path, generation):
    kind = CASES[generation]
    videos.write(tmp_path, kind)
    index = open_index(tmp_path, DataConfig(generation=generation))
    assert index.lengths.tolist() == [kind.length] * 6
    assert len(set(index.numbers.tolist())) == 6
    assert key_frame_distance(index) == DISTANCES[generation]
    columns = Columns(index, r1pro("like_action"))
    columns.ensure()
    frames = EpisodeFrames(index)
    for row in (0, 4):
        proprio, actions = columns.episode(row)
        assert proprio.shape == (kind.length, 25)
        assert np.ptp(actions[:, 3:], axis=0).all()
        shown = [frames.read(row, frame)[0] for frame in range(kind.length)]
        steps = [np.abs(a.astype(int) - b).mean() for a, b in itertools.pairwise(shown)]
        assert min(steps) > 0.1  # it moves


def test_shared_files_are_counted_once(tmp_path):
    videos.write(tmp_path, CASES["2025"])
    every = sum(path.stat().st_size for path in tmp_path.rglob("*") if path.is_file())
    assert videos.data_bytes(tmp_path) < 0.8 * every


def test_footage_is_a_pure_function_of_its_seed_and_is_not_flat():
    first, again, other = (next(footage.draw(seed, 96, 1)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert np.abs(first.astype(int) - other).mean() > 10
    assert np.abs(np.diff(first.astype(int), axis=0)).mean() > 2
