"""An audit of whole data sets, and of copies damaged in every way it knows."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openpi_b1k.curation import audit, audit_page, findings
from openpi_b1k.curation.findings import Finding
from openpi_b1k.data.index.listing import ACTION, PROPRIO
from openpi_b1k.data.shards import Shard

HEAD_2026 = "observation.rgb.zed_link_camera_0"


@pytest.fixture
def sample(sample_root, tmp_path):
    """Returns a function that copies the sample world's data of a generation, to be damaged."""
    return lambda generation: shutil.copytree(sample_root(generation), tmp_path / "data")


def audited(root, videos="none", shard=Shard(), tasks=()):  # noqa: B008 - it is frozen
    report = audit.run(root, tasks, videos, shard, 0)
    return audit.merge([report]) if shard.count == 1 else report


def kinds(report, severity="error"):
    return {finding.kind for finding in report.findings if finding.severity == severity}


def details(report, kind):
    return [finding.text for finding in report.findings if finding.kind == kind]


def parquet(root):
    return sorted((root / "data").rglob("*.parquet"))[0]


def change(root, name, edit):
    """Edits a column of the first parquet file, as an array of its values."""
    path = parquet(root)
    table = pq.read_table(path)
    column = table.column_names.index(name)
    values = np.array(table[name].to_pylist())
    values = edit(values)
    changed = pa.array(list(values), table.schema.field(name).type)
    pq.write_table(table.set_column(column, table.schema.field(column), changed), path)


@pytest.mark.parametrize("generation", ["2025", "2026"])
def test_the_sample_worlds_data_are_whole_and_right(sample_root, generation):
    report = audited(sample_root(generation), "all")
    assert not kinds(report), findings.table(report.findings)
    assert report.about["generation"] == generation
    assert report.statistics["action"]["count"] == report.about["frames"] == sum(n for _, n in report.lengths)
    assert report.examples


def test_a_missing_and_a_damaged_parquet_file(sample):
    root = sample("2025")
    files = sorted((root / "data").rglob("*.parquet"))
    files[0].unlink()
    files[1].write_bytes(files[1].read_bytes()[:200])
    report = audited(root)
    assert len(details(report, "missing file")) == 1
    assert files[0].name in details(report, "missing file")[0]
    assert files[1].name in details(report, "corrupt file")[0]


def test_tasks_that_were_not_downloaded_are_no_error_unless_asked_for(data_dir, tmp_path):
    ignore = shutil.ignore_patterns("task-0001", "*.npz")
    root = shutil.copytree(data_dir / "b1k_2025", tmp_path / "data", ignore=ignore)
    shutil.rmtree(root / "videos/task-0000/observation.images.seg_instance_id.head")
    report = audited(root)
    assert "missing file" not in kinds(report)
    note = details(report, "not downloaded")[0]
    assert "picking_up_trash" in note
    assert "observation.images.seg_instance_id.head of turning_on_radio" in note
    assert "missing file" in kinds(audited(root, tasks=("picking_up_trash",)))


def test_a_cut_video_a_missing_one_and_one_of_another_size(sample):
    root = sample("2025")
    cut, missing, other = sorted((root / "videos").rglob("*.mp4"))[:3]
    shutil.copy(sorted((root / "videos").rglob("*head/*.mp4"))[0], other)
    cut.write_bytes(cut.read_bytes()[: cut.stat().st_size // 2])
    missing.unlink()
    report = audited(root, "ends")
    assert any(cut.name in text for text in details(report, "corrupt file"))
    assert any(missing.name in text for text in details(report, "missing file"))


def test_frames_of_another_size_than_declared(sample):
    root = sample("2026")
    info = json.loads((root / "meta/info.json").read_text())
    info["features"][HEAD_2026]["shape"][:2] = [64, 64]
    (root / "meta/info.json").write_text(json.dumps(info))
    assert "meta/info.json says 64 x 64" in details(audited(root, "ends"), "other image size")[0]


def test_rows_fewer_than_the_meta_files_say(sample):
    root = sample("2025")
    pq.write_table(pq.read_table(parquet(root)).slice(0, 20), parquet(root))
    assert "20 rows, from row 0; meta/ says" in details(audited(root), "length mismatch")[0]


def test_a_video_shorter_than_its_rows_and_one_longer(sample, data_dir, tmp_path):
    root = shutil.copytree(data_dir / "b1k_2025", tmp_path / "fixture", ignore=shutil.ignore_patterns("*.npz"))
    head = root / "videos/task-0000/observation.images.rgb.head"
    short, long = head / "episode_00000020.mp4", head / "episode_00000010.mp4"
    kept = short.read_bytes()
    shutil.copy(long, short)
    long.write_bytes(kept)
    report = audited(root, "ends")
    assert any("130 frames, its rows need 260" in text for text in details(report, "length mismatch"))
    assert any("260 frames, its rows need 130" in text for text in details(report, "longer video"))


def test_episodes_that_share_frames(sample):
    root = sample("2026")
    path = sorted((root / "meta/episodes").rglob("*.parquet"))[0]
    table = pq.read_table(path)
    name = f"videos/{HEAD_2026}/from_timestamp"
    starts = pa.array(np.zeros(table.num_rows))
    pq.write_table(table.set_column(table.column_names.index(name), name, starts), path)
    assert any("of episode 0 too" in text for text in details(audited(root, "ends"), "length mismatch"))


def test_bad_timestamps_and_a_wrong_task(sample):
    root = sample("2026")
    change(root, "timestamp", lambda times: np.where(np.arange(len(times)) == 5, times + 0.02, times))
    change(root, "task_index", lambda tasks: tasks + 1)
    report = audited(root)
    assert "row 5 is at 0.1867 s, expected 0.1667 s" in details(report, "bad timestamps")[0]
    assert "task_index 1; meta/ says 0" in details(report, "wrong task")[0]


def test_values_that_are_not_finite(sample):
    root = sample("2025")
    change(root, ACTION, lambda actions: np.where(np.arange(len(actions))[:, None] == 7, np.nan, actions))
    assert "1 rows, the first is row 7" in details(audited(root), "not finite")[0]


def test_a_nan_where_the_model_does_not_look_is_a_note(sample):
    root = sample("2025")

    def spoil(proprio):
        proprio[3, 112] = np.nan  # joint_qeffort
        return proprio

    change(root, PROPRIO, spoil)
    report = audited(root)
    assert not kinds(report)
    assert details(report, "unused value")


@pytest.mark.parametrize(("value", "kind"), [(2.4, "outside limits"), (100.0, "far outside limits")])
def test_values_outside_joint_limits(sample, value, kind):
    root = sample("2025")

    def spoil(actions):
        actions[4, 9] = value  # left_arm[2], whose limits are +-2.3562
        return actions

    change(root, ACTION, spoil)
    expected = f"action.left_arm[2] is {value:.4g} in row 4, limits [-2.3562, 2.3562]; 1 rows"
    assert expected in details(audited(root), kind)[0]


def test_a_gripper_with_the_wrong_sign(data_dir):
    report = audited(data_dir / "b1k_2025")  # its numbers are made up, so some grippers move the wrong way
    assert "the right gripper is 0.019 m wider when told to close" in details(report, "gripper sign")[0]


def test_idle_ends_a_motionless_episode_and_constant_entries(sample):
    root = sample("2025")
    change(root, ACTION, lambda actions: np.where(np.arange(23) < 3, 0, np.tile(actions[:1], (len(actions), 1))))
    report = audited(root)
    assert "rows with the same command" in details(report, "motionless")[0]
    assert any("action.torso" in text for text in details(report, "constant entry"))
    assert all(start + end >= 0 for _, start, end in report.idle)


def test_annotations_missing_broken_and_awkward(sample):
    root = sample("2025")
    missing, broken, awkward = sorted((root / "annotations").rglob("*.json"))[:3]
    missing.unlink()
    broken.write_text("{")
    content = json.loads(awkward.read_text())
    content["meta_data"]["valid_duration"] = [50, 10]
    content["skill_annotation"][0]["skill_description"] = None
    awkward.write_text(json.dumps(content))
    report = audited(root)
    assert missing.name in details(report, "no annotation")[0]
    assert "is not JSON" in details(report, "broken annotation")[0]
    note = details(report, "awkward annotations")[0]
    assert "1 no description" in note
    assert "1 odd valid_duration" in note


def test_a_task_without_a_prompt(sample):
    root = sample("2026")
    path = root / "meta/tasks.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[0]["task"] = ""
    path.write_text("\n".join(map(json.dumps, lines)))
    assert lines[0]["task_name"] in details(audited(root), "no prompt")[0]


def test_a_copy_older_than_the_corrections(sample):
    root = sample("2026")
    path = root / "meta/stats.json"
    stats = json.loads(path.read_text())
    stats[PROPRIO]["min"], stats[PROPRIO]["max"] = [9.0] * 61, [9.0] * 61
    path.write_text(json.dumps(stats))
    assert "is older than the corrections" in details(audited(root), "wrong revision")[0]


def test_shards_add_up_to_the_whole(sample_root):
    root = sample_root("2025")
    whole = audited(root, "ends")
    parts = [audited(root, "ends", Shard(i, 3)) for i in range(3)]
    merged = audit.merge([audit.from_json(part.to_json()) for part in parts])
    assert {finding.text for finding in merged.findings} == {finding.text for finding in whole.findings}
    assert merged.annotations == whole.annotations
    assert sorted(merged.idle) == sorted(whole.idle)
    for group, values in whole.statistics.items():
        for name, numbers in values.items():
            np.testing.assert_allclose(merged.statistics[group][name], numbers)
    with pytest.raises(ValueError, match=r"needs each of the shards 0/3, 1/3, 2/3 once; got 0/3, 1/3"):
        audit.merge(parts[:2])
    with pytest.raises(ValueError, match="different audits: videos is ends, none"):
        audit.merge([parts[0], audited(root, "none", Shard(1, 3))])


def test_json_and_page_hold_what_was_found(sample):
    root = sample("2025")
    parquet(root).unlink()
    report = audited(root, "ends")
    again = audit.from_json(report.to_json())
    assert again.findings == report.findings
    page = audit_page.page(report)
    assert "error: missing file" in page
    assert parquet(root).parent.name in page
    assert page.count("data:image/png;base64,") == 3
    assert page.count("data:image/jpeg;base64,") == len(report.examples) > 0
    assert "http" not in page.replace("http-equiv", "")
    with pytest.raises(ValueError, match="this is no report of an audit"):
        audit.from_json("[]")


def test_the_table_counts_kinds_and_shows_some(capsys):
    found = [Finding("missing file", f"file{i}", "video") for i in range(5)] + [Finding("idle ends", "all", "few")]
    text = findings.table(found)
    assert text.index("missing file") < text.index("idle ends")
    assert "and 2 more: see --json" in text
    assert text.endswith("5 errors: training on these data would be wrong")
    assert findings.table(found[5:]).endswith("no errors")
    assert findings.has_errors(found)
    assert not findings.has_errors(found[5:])
    assert findings.table([]) == "nothing found"
    with pytest.raises(ValueError, match="no kind of finding 'odd'"):
        Finding("odd", "", "")
