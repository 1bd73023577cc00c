"""Outputs appear as a whole or not at all."""

import os

import pytest

from openpi_b1k.conversion.directory import new_directory, require_possible, write_files


def test_it_gets_its_name_when_all_is_done(tmp_path):
    output = tmp_path / "new" / "model"
    with new_directory(output) as temporary:
        write_files(temporary, {"a/b.txt": b"hello"})
        assert temporary.parent == output.parent
        assert not output.exists()
    assert (output / "a" / "b.txt").read_bytes() == b"hello"
    assert [path.name for path in output.parent.iterdir()] == ["model"]
    assert oct(output.stat().st_mode) == oct((tmp_path / "new").stat().st_mode)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_nothing_is_left_of_one_that_failed(tmp_path, error):
    output = tmp_path / "model"

    def half() -> None:
        with new_directory(output) as temporary:
            write_files(temporary, {"half": b"written"})
            raise error

    with pytest.raises(error):
        half()
    assert list(tmp_path.iterdir()) == []


def test_what_has_come_to_exist_is_not_replaced(tmp_path):
    output = tmp_path / "model"
    with pytest.raises(FileExistsError, match="made by someone else"), new_directory(output):
        output.mkdir()
    assert list(tmp_path.iterdir()) == [output]


def test_impossible_outputs_are_refused(tmp_path):
    existing, file = tmp_path / "there", tmp_path / "file"
    existing.mkdir()
    file.write_text("")
    with pytest.raises(FileExistsError, match="there exists; give another --output"):
        require_possible(existing, 0)
    with pytest.raises(PermissionError, match="file is no directory that may be written to"):
        require_possible(file / "model", 0)
    with pytest.raises(OSError, match=r"needs 1000000000\.0 GB on the disk while it is made"):
        require_possible(tmp_path / "model", 10**18)
    require_possible(tmp_path / "some" / "where" / "model", 10)
    assert not (tmp_path / "some").exists()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_closed_folder_is_refused(tmp_path):
    tmp_path.chmod(0o555)
    with pytest.raises(PermissionError, match="cannot make"):
        require_possible(tmp_path / "model", 0)
