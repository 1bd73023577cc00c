"""Exit statuses of the commands, and what they write."""

import json

from openpi_b1k.curation.recode import Settings
from scripts import audit_dataset, prepare_dataset


def test_audit_ends_with_0_where_all_is_well_1_where_training_would_be_wrong_2_where_it_cannot_look(
    sample_root, data_dir, tmp_path, capsys
):
    good = audit_dataset.Args(sample_root("2025"), videos="none", workers=0)
    assert audit_dataset.run(good) == 0
    bad = audit_dataset.Args(data_dir / "b1k_2025", videos="none", workers=0)  # its grippers are made up
    assert audit_dataset.run(bad) == 1
    assert "gripper sign" in capsys.readouterr().out
    assert audit_dataset.run(audit_dataset.Args(tmp_path)) == 2
    assert "no " in capsys.readouterr().err
    assert audit_dataset.run(audit_dataset.Args()) == 2
    assert audit_dataset.run(audit_dataset.Args(data_dir / "b1k_2025", shard="0/2")) == 2
    assert "with --shard also --json" in capsys.readouterr().err


def test_audit_of_shards_is_merged_without_the_data(sample_root, tmp_path):
    parts = tuple(tmp_path / f"{i}.json" for i in range(2))
    for i, part in enumerate(parts):
        args = audit_dataset.Args(sample_root("2025"), videos="none", shard=f"{i}/2", json=part, workers=0)
        assert audit_dataset.run(args) == 0
    whole = audit_dataset.Args(merge=parts, json=tmp_path / "whole.json", html=tmp_path / "whole.html")
    assert audit_dataset.run(whole) == 0
    assert json.loads((tmp_path / "whole.json").read_text())["about"]["shards"] == ["0/2", "1/2"]
    assert (tmp_path / "whole.html").read_text().startswith("<!DOCTYPE html>")


def test_prepare_estimates_writes_in_processes_and_refuses(data_dir, tmp_path, capsys):
    args = prepare_dataset.Args(
        data_dir / "lerobot_v30", tmp_path / "new", cameras=("head",), settings=Settings(image_size=32), dry_run=True
    )
    assert prepare_dataset.run(args) == 0
    assert "260 video frames" in capsys.readouterr().out
    assert not (tmp_path / "new").exists()
    assert prepare_dataset.run(prepare_dataset.dataclasses.replace(args, dry_run=False, workers=1)) == 0
    assert capsys.readouterr().out.endswith("complete\n")
    assert prepare_dataset.run(prepare_dataset.dataclasses.replace(args, shard="2/2")) == 2
    assert "counted from 0" in capsys.readouterr().err
    assert prepare_dataset.run(prepare_dataset.Args(tmp_path / "none", tmp_path / "new")) == 2
