import json
import shutil

import numpy as np
import pytest

from openpi_b1k.checkpoints import contents
from openpi_b1k.config.serving import ExecutionConfig
from openpi_b1k.sample.environment import SampleEnvironment
from openpi_b1k.serving import jax_backend, requests
from openpi_b1k.serving.assembly import blank_sample, serving_in_thread
from openpi_b1k.serving.options import Options, read_key
from openpi_b1k.serving.policies import Assignment, Policies, open_policies, read_assignment
from tests import sample_cases
from tests.serving.fakes import FakePolicy, client, profile, stacked


@pytest.fixture(scope="module", autouse=True)
def _quick():
    with sample_cases.quick_compilation():
        yield


def assignment_file(folder, checkpoints):
    path = folder / "checkpoints.json"
    path.write_text(json.dumps({"checkpoints": checkpoints}))
    return path


def test_a_served_checkpoint_acts_as_it_does_here(sample_checkpoint):
    """One request of four environments; then the same of 2026, with the state of that generation's proprio."""
    setup = Options(sample_checkpoint, num_envs=(4,), seed=3).setup(lambda path: jax_backend.load(path, seed=3))
    local = jax_backend.load(sample_checkpoint, seed=3)
    environments = [SampleEnvironment("2025", 0, episode) for episode in range(4)]
    seen = [environment.observation() for environment in environments]
    samples = [
        requests.raw_sample(one, local.robot, local.config.data, environment.goal.prompt)
        for one, environment in zip(seen, environments, strict=True)
    ]
    local.infer(samples)  # the server's warm-up
    with serving_in_thread(setup) as port, client(port) as one:
        assert one.metadata == {"checkpoints": [str(sample_checkpoint)], "execution": "receding_horizon"}
        chunks = local.infer(samples)
        np.testing.assert_array_equal(one.act(stacked(*seen)), chunks[:, 0])
        np.testing.assert_array_equal(one.act(stacked(*seen)), chunks[:, 1])
        one.reset()
        seen = [SampleEnvironment("2026", 0, episode).observation() for episode in range(4)]
        np.testing.assert_array_equal(one.act(stacked(*seen)), local.infer(samples)[:, 0])


def test_a_blank_sample_has_what_the_policy_wants(sample_checkpoint):
    setup = Options(sample_checkpoint).setup(lambda path: FakePolicy())
    [known] = setup.policies.profiles
    sample = blank_sample(known)
    assert {name: image.shape for name, image in sample["images"].items()} == {
        "head": (720, 720, 3), "left_wrist": (480, 480, 3), "right_wrist": (480, 480, 3)
    }  # fmt: skip
    assert sample["prompt"] in known.prompts.values()
    assert known.action_horizon == 25
    assert np.isfinite(jax_backend.load(sample_checkpoint).prepare(sample)["state"]).all()


def test_checkpoints_by_task(tmp_path, sample_checkpoint):
    shutil.copytree(sample_checkpoint, tmp_path / "one")
    names = list(contents.read_assets(sample_checkpoint).prompts)
    path = assignment_file(
        tmp_path, {"x": {"path": "one", "tasks": names[:1]}, "y": {"path": str(sample_checkpoint), "tasks": names[1:]}}
    )
    loaded = []

    def load(directory):
        loaded.append(directory)
        return FakePolicy()

    setup = Options(checkpoints_by_task=path, execution=ExecutionConfig(execution_horizon=4)).setup(load)
    assert [setup.policies.profile(name).name for name in names] == ["x", "y", "y", "y"]
    assert setup.policies.prompts.keys() == set(names)
    for name in ("x", "x", "y", "x"):
        setup.policies.get(name)
    assert loaded == [tmp_path / "one", sample_checkpoint, tmp_path / "one"]
    with pytest.raises(ValueError, match="this server has checkpoints by task: send a task_id"):
        setup.policies.profile(None)
    with pytest.raises(ValueError, match="no checkpoint is for task 'can_meat'; there are some for press_"):
        setup.policies.profile("can_meat")


def test_the_policy_before_is_gone_when_the_next_one_is_loaded():
    policies = Policies({name: profile(name) for name in "ab"}, lambda name: held.append(policies._current) or name)  # noqa: SLF001
    held = []
    policies.get("a")
    policies.get("b")
    assert held == [None, None]


def test_a_checkpoint_is_not_given_a_task_it_does_not_know(sample_checkpoint):
    assignment = Assignment({"x": sample_checkpoint}, {"can_meat": "x"})
    with pytest.raises(ValueError, match="checkpoint 'x' is to act in task 'can_meat', on which it was not trained"):
        open_policies(assignment, lambda path: FakePolicy())


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "JSONDecodeError"),
        ("[]", "TypeError"),
        ("{}", "KeyError: 'checkpoints'"),
        ('{"checkpoints": {}}', "at least one checkpoint"),
        ('{"checkpoints": {"x": {"path": "a"}}}', "KeyError: 'tasks'"),
        ('{"checkpoints": {"x": {"path": "a", "tasks": ["t", "t"]}}}', r"each task once; repeated: \['t'\]"),
        ('{"checkpoints": {"x": 1}}', "TypeError"),
    ],
)
def test_a_wrong_assignment_is_refused(tmp_path, text, reason):
    path = tmp_path / "checkpoints.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=reason):
        read_assignment(path)
    with pytest.raises(FileNotFoundError, match="no checkpoints by task at"):
        read_assignment(tmp_path / "none.json")


def test_options_that_contradict_each_other(tmp_path, sample_checkpoint):
    for options in (Options(), Options(sample_checkpoint, tmp_path / "x.json")):
        with pytest.raises(ValueError, match="give either --checkpoint DIR or --checkpoints-by-task FILE"):
            options.setup(lambda path: FakePolicy())
    with pytest.raises(ValueError, match=r"batch sizes must be at least 1; got \(0,\)"):
        Options(sample_checkpoint, num_envs=(0,)).setup(lambda path: FakePolicy())
    with pytest.raises(FileNotFoundError, match="no config at"):
        Options(tmp_path / "nowhere").setup(lambda path: FakePolicy())


def test_the_key_of_a_file(tmp_path):
    (tmp_path / "key").write_text(" s3cret\n")
    assert read_key(tmp_path / "key") == "s3cret"
    (tmp_path / "empty").write_text("\n")
    with pytest.raises(ValueError, match="is empty; a server with an empty key would let nobody in"):
        read_key(tmp_path / "empty")
    with pytest.raises(FileNotFoundError, match="no key at"):
        read_key(tmp_path / "none")
