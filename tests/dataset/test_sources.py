"""A source opened from a config: which frames come, in which mode, for how much memory."""

import collections
import dataclasses
import logging

import numpy as np
import pytest

from openpi_b1k.data import sources
from openpi_b1k.data.frames.runs import READER_BYTES_PER_PIXEL, WindowSize
from openpi_b1k.data.order.lanes import LANES
from openpi_b1k.data.order.slots import RUN, Mixing
from openpi_b1k.data.sources import choose_plan, open_source
from tests.dataset.dataset_cases import NAMES, make_config


def with_data(config, **changes):
    return dataclasses.replace(config, data=dataclasses.replace(config.data, **changes))


READERS_BYTES = READER_BYTES_PER_PIXEL * (144**2 + 2 * 96**2)
RUN_BYTES = RUN * 3 * 3 * 56 * 56
SPAN_BYTES = READERS_BYTES * 17 / 16 + RUN_BYTES
"""Of the decoders of three videos, some to spare, and of a run of pictures at the model's size."""


def window_gb(num_open):
    return (LANES * num_open + 0.01) * SPAN_BYTES / 1e9


def frames_of(opened, epoch=0):
    """Returns (episode, frame) of every sample of an epoch."""
    size, index = opened.order.num_samples, opened.demonstrations.index
    picks = [opened.order.pick(n).index for n in range(epoch * size, (epoch + 1) * size)]
    located = [index.locate(i) for i in picks]
    return [(int(index.numbers[row]), frame) for row, frame in located]


@pytest.fixture
def config_2025(data_dir):
    return make_config("2025", data_dir / NAMES["2025"])


def test_an_epoch_is_every_frame_of_the_windows_of_the_training_episodes(config):
    opened = open_source(config.data, config, 1)
    found = opened.demonstrations
    index, held_out = found.index, found.validation
    expected = [
        (number, frame)
        for number, begin, end in zip(index.numbers.tolist(), index.begins, index.ends, strict=True)
        for frame in range(begin, end)
    ]
    for epoch in (0, 1):
        assert sorted(frames_of(opened, epoch)) == sorted(expected)
    assert not set(index.numbers.tolist()) & set(held_out.numbers.tolist())
    assert len(held_out.numbers)


def test_samples_are_the_data_sets_whatever_is_decoded_together(config):
    opened = open_source(config.data, config, 1)
    for n in [*range(0, 20 * LANES, LANES), *range(10)]:
        pick = opened.order.pick(n)
        sample, plain = opened.dataset.get(pick.index, pick.run), opened.dataset[pick.index]
        assert (sample["episode"], sample["frame"]) == (plain["episode"], plain["frame"])
        for camera, image in plain["images"].items():
            np.testing.assert_array_equal(sample["images"][camera], image)


def test_skill_weights_keep_their_part_of_every_skills_frames(config_2025):
    plain = open_source(config_2025.data, config_2025, 1)
    weights = (("all", 0.5), ("move to", 0.0), ("pick up from", 1.0))
    config = with_data(config_2025, skill_weights=weights)
    opened = open_source(config.data, config, 1)
    index, skills = plain.demonstrations.index, plain.demonstrations.skills

    def count(frames):
        counts = collections.Counter()
        for number, frame in frames:
            kind = skills.kind_at(int(np.flatnonzero(index.numbers == number)[0]), frame)
            counts[kind.skills] += 1
        return counts

    whole = count(frames_of(plain))
    epochs = [frames_of(opened, epoch) for epoch in (0, 1)]
    for frames in epochs:
        assert len(set(frames)) == len(frames) == opened.order.num_samples
        kept = count(frames)
        for names, number in whole.items():
            if len(names) == 1:
                weight = dict(weights).get(names[0], 0.5)
                segments = 10  # each is rounded by itself
                assert abs(kept[names] - weight * number) <= (segments if 0 < weight < 1 else 0)
    assert set(epochs[0]) != set(epochs[1])
    assert sorted(frames_of(open_source(config.data, config, 1))) == sorted(epochs[0])


@pytest.mark.parametrize(
    ("distance", "changes", "expected"),
    [
        (250, {}, (Mixing(3, is_sequential=True, num_more=32), 250)),
        (250, {"order": "frames"}, (Mixing(), sources.FRAMES_SPAN)),
        (250, {"frame_cache_gib": 1.0}, (Mixing(), sources.FRAMES_SPAN)),
        (8, {}, (Mixing(), sources.FRAMES_SPAN)),
        (8, {"order": "spans"}, (Mixing(3, is_sequential=True, num_more=32), 248)),
        (60, {}, (Mixing(3, is_sequential=True, num_more=32), 240)),
        (250, {"window_gb": 1e-6}, (Mixing(1, is_sequential=True), 250)),
    ],
)
def test_key_frames_and_config_decide_the_mode(config_2025, monkeypatch, distance, changes, expected):
    monkeypatch.setattr(sources, "key_frame_distance", lambda index: distance)
    config = with_data(config_2025, **{"window_gb": window_gb(3.5)} | changes)
    index = sources.open_demonstrations(config.data, open_source(config.data, config, 1).robot).index
    plan = choose_plan(config.data, config, index, num_readers=1)
    assert (plan.mixing, plan.longest) == expected


@pytest.mark.parametrize("num_readers", [1, 2, 16, 24, 64])
def test_windows_of_all_readers_stay_within_their_memory(config_2025, num_readers):
    index = open_source(config_2025.data, config_2025, 1).demonstrations.index
    config = with_data(config_2025, window_gb=window_gb(10))
    plan = choose_plan(config.data, config, index, num_readers)
    lanes = -(-LANES // num_readers)
    spans = lanes * (plan.mixing.num_open + (plan.mixing.num_more > 0))
    assert plan.window.num_readers > 3 * (spans - lanes)
    used = plan.window.picture_bytes + plan.window.num_readers // 3 * READERS_BYTES
    assert 0.8 * config.data.window_gb * 1e9 < num_readers * used <= config.data.window_gb * 1e9


def test_the_window_is_shared_by_sources(config_2025, caplog):
    index = open_source(config_2025.data, config_2025, 1).demonstrations.index
    config = with_data(config_2025, window_gb=window_gb(4.5))
    with caplog.at_level(logging.INFO):
        alone = choose_plan(config.data, config, index, num_readers=1)
    assert "every 250 frames) are decoded once, 288 mixed at a time in 64 lanes: at most" in caplog.text
    assert alone.mixing == Mixing(4, is_sequential=True, num_more=32)
    assert alone.window == WindowSize(288 * RUN_BYTES, 3 * (288 + 18))
    two = with_data(config, extra_sources=(dataclasses.replace(make_config("2025", None).data, name="more"),))
    assert choose_plan(two.data, two, index, num_readers=1).mixing == Mixing(2, is_sequential=True, num_more=16)
