import numpy as np
import pytest

from openpi_b1k.config.data import SourceConfig
from openpi_b1k.serving.protocol import ProtocolError
from openpi_b1k.serving.requests import parse, raw_sample
from tests.serving.fakes import ROBOT, observation, stacked

PAIR = stacked(observation(1, task=0), observation(2, task=4))


def test_environments_are_told_apart():
    request = parse(PAIR | {"prompt": "Go.", "__action_chunk_size__": 3})
    assert (request.kind, request.chunk_size) == ("2026", 3)
    assert [one.task_id for one in request.environments] == [0, 4]
    assert [one.prompt for one in request.environments] == ["Go.", "Go."]
    for one, value in zip(request.environments, (1, 2), strict=True):
        assert one.observation["robot_r1::proprio"][0] == value
        assert one.observation["robot_r1::proprio"].ndim == 1


def test_a_task_id_has_any_shape_of_one_number():
    for task_id in (7, np.int64(7), np.array(7), np.array([7]), np.array([[7]])):
        assert parse(observation() | {"task_id": task_id}).environments[0].task_id == 7


@pytest.mark.parametrize("value", [True, False, None, 0])
def test_the_key_alone_makes_a_reset(value):
    assert parse({"reset": value}) is None


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ({}, "this message has: nothing"),
        ({"robot_r1::proprio": np.zeros((1, 1, 61), np.float32)}, r"got \[1, 1, 61\]"),
        ({"robot_r1::proprio": [1.0]}, "must be an array of numbers; got list"),
        ({"robot_r1::proprio": np.zeros((0, 61), np.float32)}, "1 to 256 environments; got 0"),
        ({"robot_r1::proprio": np.zeros((257, 61), np.float32)}, "1 to 256 environments; got 257"),
        (PAIR | {"task_id": np.array([[1]])}, r"'task_id' is \[1, 1\]"),
        (PAIR | {"task_id": [0, 4]}, r"'task_id' of 2 environments must be an array; got \[0, 4\]"),
        (PAIR | {"task_id": 4}, "'task_id' of 2 environments must be an array; got 4"),
        (observation() | {"task_id": [[1], [2, 3]]}, "'task_id' must be one whole number"),
        (PAIR | {"prompt": ["Go."]}, "'prompt' must be one text or 2; got 1"),
        (observation() | {"prompt": " "}, "must be a text that is not empty"),
        (observation() | {"prompt": 3}, "must be a text that is not empty"),
        (observation() | {"task_id": "radio"}, "'task_id' must be one whole number"),
        (observation() | {"task_id": np.array([1.0])}, "'task_id' must be one whole number"),
        (observation() | {"task_id": np.array([1, 2])}, "'task_id' must be one whole number"),
        (observation() | {"__action_chunk_size__": 0}, r"must be in \[1, 1000\]; got 0"),
        (observation() | {"__action_chunk_size__": 1001}, r"must be in \[1, 1000\]; got 1001"),
    ],
)
def test_what_does_not_fit_together_is_refused(message, reason):
    with pytest.raises(ProtocolError, match=reason):
        parse(message)


def test_numbers_beyond_float32_become_infinite_for_the_policy_to_refuse():
    message = observation() | {"robot_r1::proprio": np.full(256, 1e300)}
    [environment] = parse(message).environments
    sample = raw_sample(environment.observation, ROBOT, SourceConfig(), "Go.")
    assert np.isposinf(sample["proprio"]).all()


@pytest.mark.parametrize("is_float", [True, False])
@pytest.mark.parametrize("is_channel_first", [True, False])
def test_openpis_images_become_the_evaluators(is_float, is_channel_first):
    image = np.arange(4 * 5 * 3, dtype=np.uint8).reshape(4, 5, 3)
    sent = image / np.float32(255) + np.float32(1e-4) if is_float else image
    sent = np.moveaxis(sent, -1, 0) if is_channel_first else sent
    message = {"observation/state": np.zeros(256, np.float32), "observation/egocentric_camera": sent, "prompt": "Go."}
    [environment] = parse(message).environments
    key = "robot_r1::robot_r1:zed_link:Camera:0::rgb"
    np.testing.assert_array_equal(environment.observation[key], image)
    assert environment.prompt == "Go."
