"""The benchmark of statistics: its data are a release the reader opens, and its figures belong together."""

import numpy as np
import pyarrow.parquet as pq
import pytest

from openpi_b1k.benchmarks.statistics import measure, write_columns
from openpi_b1k.config.data import DataConfig
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.robots.r1pro import r1pro

FRAMES = 250_000


def test_columns_are_a_release_without_videos(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENPI_B1K_CACHE", str(tmp_path / "cache"))
    write_columns(tmp_path / "data", FRAMES)
    index = open_index(tmp_path / "data", DataConfig(generation="2026"))
    assert len(index) == FRAMES
    assert len(np.unique(index.data_ids)) == 2
    row = len(index.numbers) - 1
    _, actions = Columns(index, r1pro("like_action")).episode(row)  # refuses rows that are not where meta/ says
    table = pq.read_table(tmp_path / "data" / index.data_files[index.data_ids[row]])
    np.testing.assert_array_equal(np.stack(table["action"][-len(actions) :].to_numpy()), actions)
    with pytest.raises(ValueError, match="frames must be at least an episode's, 10545; got 7"):
        write_columns(tmp_path / "none", 7)


def test_figures_belong_together(tmp_path, monkeypatch):
    monkeypatch.setenv("OPENPI_B1K_CACHE", str(tmp_path))
    speeds = measure(20_000)
    assert speeds.frames == 20_000
    for kind in ("absolute", "delta"):
        cached, both = (getattr(speeds, f"{where}_{kind}_per_s") for where in ("cached", "parquet"))
        assert 1 / both == pytest.approx(1 / speeds.conversion_per_s + 1 / cached, rel=1e-3)
    assert list(tmp_path.iterdir()) == []
