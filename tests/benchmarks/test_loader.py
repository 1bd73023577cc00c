"""The loader's benchmark: its ceiling decodes the loader's own frames, and its measures are what they say."""

import dataclasses

import numpy as np
import pytest

from openpi_b1k.benchmarks import commands, loader, videos
from openpi_b1k.benchmarks.ceiling import Videos, Wanted, wanted_frames
from openpi_b1k.benchmarks.mixing import mixedness, neighbour_correlation
from openpi_b1k.benchmarks.settings import Settings
from openpi_b1k.data.open import open_training_data
from openpi_b1k.data.order.rows import Rows

SMALL = {"sizes": (96, 64, 64), "num_tasks": 2, "episodes_per_task": 4, "num_clips": 2, "num_reels": 2}
KINDS = {
    "frames": dataclasses.replace(videos.KINDS["2026-gop8"], length=48, clip_length=24, **SMALL),
    "spans": dataclasses.replace(
        videos.KINDS["2025-gop250"], encoder=videos.hevc(50, 28), length=100, clip_length=50, **SMALL
    ),
}
SETTINGS = Settings(num_workers=1, batch_size=16, turns=2, steps_per_turn=1, memory_samples=64, window_gb=0.1)


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    directory = tmp_path_factory.mktemp("kinds")
    for name, kind in KINDS.items():
        videos.write(directory / name, kind)
    return {name: directory / name for name in KINDS}


@pytest.mark.parametrize("mode", list(KINDS))
def test_the_ceiling_decodes_what_the_loader_gives(roots, mode):
    config = loader.run_config(KINDS[mode], roots[mode], SETTINGS)
    data = open_training_data(config)
    index = data.sources[0].demonstrations.index
    rows = Rows(16, 0, 16, 2)
    decoded = Videos(index, config.model.image_size)
    lengths = set()
    for worker in (0, 1):
        wanted = wanted_frames(data.mixture, index, rows, range(2), worker)
        positions = [n for step in range(2) for n in rows.share(step, worker)[1].tolist()]
        assert len(wanted) == len(positions) > 0
        for each, n in zip(wanted, positions, strict=True):
            sample = data.mixture.sample(n)
            for video, picture in zip(index.videos, decoded.read(each), strict=True):
                np.testing.assert_array_equal(picture, sample["images"][video.camera])
            lengths.add(len(each.run))
    assert (max(lengths) > 1) == (mode == "spans")


def test_a_waiting_decoder_goes_on(roots):
    config = loader.run_config(KINDS["spans"], roots["spans"], SETTINGS)
    index = open_training_data(config).sources[0].demonstrations.index
    decoded = Videos(index, 32)
    runs = [(3, 5, 6), (9, 10)]
    kept = {frame: decoded.read(Wanted(0, frame, run)) for run in runs for frame in reversed(run)}
    for frame, pictures in kept.items():
        for one, other in zip(pictures, Videos(index, 32).read(Wanted(0, frame, (frame,))), strict=True):
            np.testing.assert_array_equal(one, other)


def test_neighbours_are_of_the_same_episode_and_near():
    rows = np.array([0, 1, 0, 0, 2, 2])
    frames = np.array([10, 10, 40, 90, 0, 31])
    assert neighbour_correlation(rows, frames, 30) == pytest.approx(2 / 6)
    assert neighbour_correlation(rows, frames, 31) == pytest.approx(4 / 6)
    assert neighbour_correlation(np.zeros(4, int), np.arange(4), 1) == 1
    assert neighbour_correlation(np.arange(4), np.zeros(4, int), 30) == 0


def test_mixedness_counts_episodes(roots):
    data = open_training_data(loader.run_config(KINDS["frames"], roots["frames"], SETTINGS))
    index = data.sources[0].demonstrations.index
    found = mixedness(data.mixture, index, 16, [0, 3])
    seen = [
        {index.locate(data.mixture.address(n).index)[0] for n in range(step * 16, step * 16 + 16)} for step in (0, 3)
    ]
    assert found.distinct_episodes == np.mean([len(episodes) for episodes in seen])
    assert found.fewest_episodes == min(len(episodes) for episodes in seen)


def test_a_row_is_measured(roots):
    row = loader.measure(KINDS["frames"], SETTINGS, roots["frames"])
    assert row.samples_per_s_per_core > 0
    assert row.ceiling_per_s_per_core > 0
    assert 0.05 < row.ratio_to_ceiling < 20
    assert 0 < row.memory_start_gb <= row.memory_peak_gb < 3
    assert row.samples == 64
    text = commands.table([dataclasses.asdict(row)])
    assert all(field.name in text for field in dataclasses.fields(row))


def test_what_makes_no_sense_is_refused():
    with pytest.raises(ValueError, match="at least 1; got Settings"):
        Settings(num_workers=0)
    with pytest.raises(ValueError, match="no kind of data 'gop'; known kinds: 2025-gop250, 2026-gop8, prepared-224"):
        videos.kind_named("gop")
