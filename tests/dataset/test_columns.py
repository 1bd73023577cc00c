"""Column files against the parquet files they are made of."""

import dataclasses
import logging
import os
import pickle
import shutil
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from openpi_b1k.data import column_files, columns
from openpi_b1k.data.columns import Columns
from openpi_b1k.data.index.formats import open_index
from openpi_b1k.robots.r1pro import PROPRIO, PROPRIO_IN_USE, r1pro
from tests.dataset.dataset_cases import make_config

ROBOT = r1pro("like_action")


@pytest.fixture
def index(root, config):
    return open_index(root, config.data)


@pytest.fixture
def no_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("OPENPI_B1K_CACHE", str(tmp_path / "cache"))


def rows_of(index, row):
    """Returns proprio [n, p] and actions [n, 23] as the parquet file's lists hold them."""
    table = pq.read_table(index.root / index.data_files[index.data_ids[row]]).to_pydict()
    mine = np.array(table["episode_index"]) == index.numbers[row]
    return (np.array(table[name], np.float32)[mine] for name in ("observation.state", "action"))


def assert_right(read, index):
    for row in range(len(index.numbers)):
        proprio, actions = read.episode(row)
        whole, expected = rows_of(index, row)
        assert proprio.dtype == actions.dtype == np.float32
        np.testing.assert_array_equal(actions, expected)
        layout = PROPRIO["2025" if index.proprio_size == 256 else "2026"]
        for name in PROPRIO_IN_USE.names:
            np.testing.assert_array_equal(proprio[:, PROPRIO_IN_USE.slice(name)], whole[:, layout.slice(name)])


def test_columns_are_those_of_the_parquet_files(index, no_cache, monkeypatch):
    monkeypatch.setattr(column_files, "BLOCK_ROWS", 100)  # several blocks per file
    read = Columns(index, ROBOT)
    read.ensure()
    assert_right(read, index)
    assert_right(pickle.loads(pickle.dumps(read)), index)
    with pytest.raises(ValueError, match="read-only"):
        read.episode(0)[0][0] = 1


def test_windows_do_not_change_what_is_kept(index):
    cut = dataclasses.replace(index, begins=index.begins + 3, ends=index.ends - 5)
    np.testing.assert_array_equal(Columns(cut, ROBOT).episode(1)[1], Columns(index, ROBOT).episode(1)[1])


def test_files_are_converted_once_with_the_size_in_the_log(index, no_cache, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    Columns(index, ROBOT).ensure()
    assert f"{len(index.data_files)} data files, {index.lengths.sum()} rows" in caplog.text
    monkeypatch.setattr(column_files, "_write", None)
    Columns(index, ROBOT).ensure()
    assert_right(Columns(index, ROBOT), index)
    assert not list(Columns(index, ROBOT).directory.rglob("*.partial"))


def test_an_interrupted_conversion_goes_on(index, no_cache):
    read = Columns(index, ROBOT)
    partial = read.directory / f"{index.data_files[0]}.npy.partial"
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"half a file")
    read.ensure()
    assert_right(read, index)
    assert not partial.exists()


def test_another_parquet_file_is_converted_again_and_a_copy_is_not(copies, generation, no_cache, monkeypatch):
    monkeypatch.setattr("openpi_b1k.data.index.formats.check_files", lambda index: None)
    root = copies(generation)
    index = open_index(root, make_config(generation, None).data)
    Columns(index, ROBOT).ensure()
    path = root / index.data_files[0]
    os.utime(path, ns=(1, 1))  # the same content under another date
    with monkeypatch.context() as patch:
        patch.setattr(column_files, "_write", None)
        Columns(index, ROBOT).ensure()
    table = pq.read_table(path)
    actions = np.array(table["action"].to_pylist(), np.float32) + 1
    pq.write_table(table.set_column(table.column_names.index("action"), "action", pa.array(list(actions))), path)
    assert_right(Columns(index, ROBOT), index)


def test_a_disk_without_room_is_refused_before_anything_is_written(index, no_cache, monkeypatch):
    usage = shutil.disk_usage("/")._replace(free=2**30)
    monkeypatch.setattr(columns.shutil, "disk_usage", lambda _: usage)
    read = Columns(index, ROBOT)
    with pytest.raises(OSError, match=r"need 0.0 GB and 1.1 GB to spare in .* where 1.1 GB are free.*OPENPI_B1K_CACHE"):
        read.ensure()
    assert not list(read.directory.rglob("*.npy*"))


def test_threads_and_processes_write_a_file_once(index, no_cache, monkeypatch):
    written = []
    write = column_files._write  # noqa: SLF001

    def counted(source, *args):
        written.append(source)
        write(source, *args)

    monkeypatch.setattr(column_files, "_write", counted)
    readers = [Columns(index, ROBOT) for _ in range(4)]
    threads = [threading.Thread(target=reader.ensure) for reader in readers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(written) == len(set(written)) == len(index.data_files)
    assert_right(readers[0], index)


def test_maps_used_longest_ago_are_closed(data_dir, monkeypatch):
    monkeypatch.setattr(columns, "MAX_MAPS", 2)
    index = open_index(data_dir / "b1k_2025", make_config("2025", None).data)
    read = Columns(index, ROBOT)
    for row in (0, 2, 1, 4, 3, 2, 0):
        np.testing.assert_array_equal(read.episode(row)[1], list(rows_of(index, row))[1])
        assert len(read._maps) <= 2  # noqa: SLF001


def test_data_files_that_break_the_promise_are_refused(copies, generation, no_cache, monkeypatch):
    monkeypatch.setattr("openpi_b1k.data.index.formats.check_files", lambda index: None)
    root = copies(generation)
    index = open_index(root, make_config(generation, None).data)
    path, number, length = root / index.data_files[0], index.numbers[0], index.lengths[0]
    original = pq.read_table(path)
    actions = np.array(original["action"].to_pylist(), np.float32)

    def refused(table, message):
        pq.write_table(table, path)
        with pytest.raises(ValueError, match=message):
            Columns(index, ROBOT).ensure()

    def with_column(name, values):
        return original.set_column(original.column_names.index(name), name, pa.array(list(values)))

    refused(original.slice(5), rf"has {length - 5} rows of episode {number}, but meta/ says {length}; download")
    ragged = [*map(list, actions[:-2]), list(actions[0][:22]), [*actions[0], 1.0]]
    refused(
        with_column("action", ragged), r"action of .*parquet must hold 23 numbers in each row; some have 22, 23, 24"
    )
    broken = actions.copy()
    broken[7, 3] = np.nan
    refused(with_column("action", broken), rf"action of .*NaN or infinity, first in row 7 \(episode {number}\)")
    refused(original.drop_columns("action"), "lacks the columns action")
    numbers = original["episode_index"].to_numpy().copy()
    numbers[100] = -1
    refused(with_column("episode_index", numbers), r"holds an episode in several pieces|has .* rows of episode")
    refused(pa.concat_tables([original.slice(3, 1), original]), r"several pieces|rows of episode|from row")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"cannot be read as parquet: .*; download it again"):
        Columns(index, ROBOT).ensure()
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"no data file .*--data.tasks"):
        Columns(index, ROBOT).ensure()
