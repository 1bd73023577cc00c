import json
import pathlib

import pytest

from configs import debug
from openpi_b1k.checkpoints import contents, retention
from openpi_b1k.config.train import CheckpointConfig

LOSS = "validation/flow_loss"


def make_checkpoint(run: pathlib.Path, step: int, metrics: dict[str, float] | None) -> None:
    """Writes what retention reads of a checkpoint, and a file that must go with it."""
    info = contents.CheckpointInfo(step, step * 8, "f", False, "1")
    files = {contents.INFO_FILE: json.dumps(contents.dataclasses.asdict(info)).encode()}
    (run / str(step) / "params").mkdir(parents=True)
    (run / str(step) / "params" / "data").write_bytes(b"1")
    for name, content in contents.with_metrics(files, metrics or {}).items():
        (run / str(step) / name).write_bytes(content)


@pytest.mark.parametrize(
    ("keep_last", "keep_every", "keep_best", "expected"),
    [
        (1, None, 0, {6}),
        (2, None, 0, {5, 6}),
        (1, 2, 0, {2, 4, 6}),
        (1, None, 1, {3, 6}),
        (1, None, 2, {1, 3, 6}),
        (1, None, 9, {1, 2, 3, 6}),
        (2, 2, 1, {2, 3, 4, 5, 6}),
    ],
)
def test_the_newest_every_nth_and_the_best_are_kept(keep_last, keep_every, keep_best, expected):
    values = {1: 0.5, 2: 0.7, 3: 0.2, 4: None, 5: None, 6: 0.9}
    config = CheckpointConfig(1, keep_last, keep_every, keep_best)
    assert retention.kept(values, config) == expected


def test_of_equal_ones_the_earlier_is_better():
    assert retention.ranked({1: 0.5, 2: 0.25, 3: 0.25, 4: None}) == [2, 3, 1]


def test_the_best_is_recorded_and_kept_while_others_go(tmp_path):
    config = CheckpointConfig(save_every=1, keep_last=1, keep_every=None)
    records = []
    for step, loss in ((1, 0.5), (2, 0.25), (3, float("nan")), (4, None), (5, 0.75)):
        make_checkpoint(tmp_path, step, None if loss is None else {LOSS: loss, "validation/base": 1.0})
        retention.retire(tmp_path, config)
        records.append(contents.best_checkpoint(tmp_path))
    assert records == [contents.Best(1, LOSS, 0.5), *[contents.Best(2, LOSS, 0.25)] * 4]
    assert json.loads((tmp_path / "best.json").read_text()) == {"step": 2, "metric": LOSS, "value": 0.25}
    assert contents.completed_checkpoints(tmp_path) == [2, 5]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["2", "5", "best.json"]


def test_a_loss_that_is_no_number_is_stored_as_none_and_never_best(tmp_path):
    for step, loss in ((1, float("nan")), (2, float("-inf"))):
        make_checkpoint(tmp_path, step, {LOSS: loss})
        retention.retire(tmp_path, CheckpointConfig(1, 2, None))
        assert contents.read_info(tmp_path / str(step)).metrics == {LOSS: None}
    assert contents.best_checkpoint(tmp_path) is None


def test_another_metric_chooses_another_best(tmp_path):
    for step, (loss, arm) in {1: (0.5, 0.1), 2: (0.4, 0.2)}.items():
        make_checkpoint(tmp_path, step, {LOSS: loss, "validation/right_arm": arm})
    retention.retire(tmp_path, CheckpointConfig(1, 2, None, best_metric="validation/right_arm"))
    assert contents.best_checkpoint(tmp_path) == contents.Best(1, "validation/right_arm", 0.1)


def test_none_is_best_without_metrics_or_where_none_is_kept_or_it_was_deleted(tmp_path):
    make_checkpoint(tmp_path, 1, None)
    retention.retire(tmp_path, CheckpointConfig(1, 1, None))
    assert contents.best_checkpoint(tmp_path) is None
    make_checkpoint(tmp_path, 2, {LOSS: 0.5})
    retention.retire(tmp_path, CheckpointConfig(1, 1, None, keep_best=0))
    assert contents.best_checkpoint(tmp_path) is None
    retention.retire(tmp_path, CheckpointConfig(1, 1, None))
    assert contents.best_checkpoint(tmp_path) == contents.Best(2, LOSS, 0.5)
    (tmp_path / "2").rename(tmp_path / "moved")
    assert contents.best_checkpoint(tmp_path) is None


def test_an_unknown_record_is_refused(tmp_path):
    (tmp_path / "best.json").write_text('{"step": 1}')
    with pytest.raises(ValueError, match=r"best\.json is not of this version; delete it"):
        contents.best_checkpoint(tmp_path)


def test_what_a_killed_run_leaves_is_no_checkpoint_and_is_cleaned_up(tmp_path, caplog):
    make_checkpoint(tmp_path, 1, None)
    for name in ("2.orbax-checkpoint-tmp", "1000.deleting"):
        (tmp_path / name / "params").mkdir(parents=True)
    assert contents.completed_checkpoints(tmp_path) == [1]
    retention.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["1"]
    assert "2.orbax-checkpoint-tmp, which was not finished when its run ended" in caplog.text


def test_a_checkpoint_that_goes_loses_its_name_first(tmp_path, monkeypatch):
    for step in (1, 2):
        make_checkpoint(tmp_path, step, None)

    def killed(path):
        raise KeyboardInterrupt

    monkeypatch.setattr(retention.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        retention.retire(tmp_path, CheckpointConfig(1, 1, None))
    assert contents.completed_checkpoints(tmp_path) == [2]
    monkeypatch.undo()
    retention.clean(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["2"]


def test_infos_name_packages_layouts_and_hashes():
    info = contents.CheckpointInfo(1, 8, "f", False, "1")
    assert info.schema_version == contents.SCHEMA_VERSION == 2
    assert set(info.package_versions) == {"jax", "flax", "optax", "orbax-checkpoint", "numpy"}
    assert all(version[0].isdigit() for version in info.package_versions.values())
    assert info.process_count == 1
    layout = contents.Layout((retention_field("base", 3, "m/s"), retention_field("torso", 4, "rad")))
    assert contents.describe_layout(layout) == ("base 3 m/s", "torso 4 rad")
    assert debug.CONFIG.checkpoints.keep_best == 1


def retention_field(name, size, unit):
    from openpi_b1k.robots.layout import Field

    return Field(name, size, unit)
