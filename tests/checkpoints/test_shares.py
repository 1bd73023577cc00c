"""Reading weights: each device gets its share, and the host holds the shares and little more than one array."""

import json
import os
import pathlib
import subprocess
import sys

REPOSITORY = pathlib.Path(__file__).parents[2]
CACHE_MB = 100
"""What TensorStore, which reads for Orbax, keeps of a database."""
OTHER_MB = 150
"""Programs that read, and what XLA, threads and allocators take."""


def in_a_process(*arguments):
    environment = os.environ | {"XLA_FLAGS": "--xla_force_host_platform_device_count=8"}
    command = [sys.executable, "-m", "tests.checkpoints.read_into_shards", *map(str, arguments)]
    done = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=300)  # noqa: PLW1510
    assert done.returncode == 0, done.stderr[-3000:]


def test_no_device_and_no_host_holds_more_than_its_share_and_one_array(tmp_path):
    for _ in ("write", "read"):
        in_a_process(tmp_path / "params", tmp_path / "rows.json")
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert [row["fsdp"] for row in rows] == [8, 4, 2, 1]
    whole = rows[-1]["per_device"]
    for row in rows:
        assert row["whole"] == whole
        assert whole / row["fsdp"] <= row["per_device"] < 1.02 * whole / row["fsdp"]  # norms and biases are not split
    # Of eight parts none is held twice, so all that this process has beside them is for reading: one array as it is on
    # disk and again unpacked.
    assert rows[0]["beside"] < 2 * rows[0]["largest_stored"] + CACHE_MB + OTHER_MB
