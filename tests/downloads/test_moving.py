import contextlib
import hashlib
import io
import json
import pathlib
import shutil
import subprocess
import sys
import tarfile
import types

import pytest

from openpi_b1k.downloads import disk, moving, record

WEIGHTS = {"_METADATA": b"m", "d/array": bytes(range(256)) * 100}
TOKENIZER = {"": b"pieces"}


def put(cache, place, files, *, has_record=True):
    path = cache / place
    for name, content in files.items():
        file = path / name if name else path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    if has_record:
        record.record_file(path).write_text(record.make(f"gs://bucket/{path.name}", path).to_json())
    return path


def content(cache):
    files = [file for file in cache.rglob("*") if file.is_file() and file.suffix != ".lock"]
    return {str(file.relative_to(cache)): file.read_bytes() for file in files}


@pytest.fixture
def filled(tmp_path):
    put(tmp_path / "cache", "gs/weights", WEIGHTS)
    put(tmp_path / "cache", "https/tokenizer", TOKENIZER)
    return tmp_path / "cache"


@pytest.fixture
def exported(filled, tmp_path):
    moving.export(record.entries(filled), filled, tmp_path / "weights.tar")
    return tmp_path / "weights.tar"


def test_a_cache_arrives_as_it_was(filled, exported, tmp_path):
    there = tmp_path / "there"
    assert list(moving.import_tar(exported, there)) == [
        ("gs://bucket/weights", f"now at {there}/gs/weights"),
        ("gs://bucket/tokenizer", f"now at {there}/https/tokenizer"),
    ]
    assert content(there) == content(filled)
    assert all(record.state(entry).is_good for entry in record.entries(there))
    assert not list(tmp_path.glob("*.partial"))


def test_what_is_there_is_kept(exported, tmp_path):
    there = tmp_path / "there"
    put(there, "gs/weights", {"own": b"mine"}, has_record=False)
    outcomes = dict(moving.import_tar(exported, there))
    assert outcomes["gs://bucket/weights"] == f"kept what is at {there}/gs/weights"
    assert (there / "gs/weights/own").read_bytes() == b"mine"
    assert (there / "https/tokenizer").read_bytes() == b"pieces"


def test_a_damaged_or_cut_off_file_leaves_nothing_of_that_download(exported, tmp_path):
    whole = exported.read_bytes()
    at = whole.index(WEIGHTS["d/array"]) + 1000
    for number, (bad, message) in enumerate(
        (
            (whole[:at] + b"!" + whole[at + 1 :], r"is damaged: .*d/array is damaged: its SHA-256"),
            (whole[:at], r"is damaged|cut off|is no tar file"),
            (b"nothing of the kind" * 100, "is no tar file, or is cut off"),
        )
    ):
        exported.write_bytes(bad)
        there = tmp_path / f"there{number}"
        with pytest.raises(ValueError, match=message):
            list(moving.import_tar(exported, there))
        assert content(there) == {}
    with pytest.raises(FileNotFoundError, match=r"no .*none\.tar; make one with --export"):
        list(moving.import_tar(tmp_path / "none.tar", tmp_path))


def write_tar(path, members):
    with tarfile.open(path, "w") as tar:
        for name, text in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(text)
            tar.addfile(member, io.BytesIO(text.encode()))
    return path


def record_of(*names):
    return record.Record("gs://x", {name: record.FileRecord(1, hashlib.sha256(b"x").hexdigest()) for name in names})


@pytest.mark.parametrize(
    "place",
    ["gs/../../evil", "/etc/x", "other/x", "gs/.x", "gs/", "gs/x/y", "gs", "gs/x.lock", "gs/x.record.json", 3],
)
def test_places_that_lead_elsewhere_are_refused(tmp_path, place):
    members = {
        "contents.json": json.dumps([place]),
        f"{place}.record.json": record_of("a").to_json(),
        f"{place}/a": "x",
    }
    source = write_tar(tmp_path / "evil.tar", members)
    with pytest.raises(ValueError, match=r"was not written by --export: .* is no place of a download"):
        list(moving.import_tar(source, tmp_path / "a" / "cache"))
    assert list(tmp_path.iterdir()) == [source]


@pytest.mark.parametrize("name", ["../../evil", "/evil", "a/../../../evil", "a//evil", "./evil"])
def test_names_that_lead_elsewhere_are_refused(tmp_path, name):
    members = {"contents.json": '["gs/x"]', "gs/x.record.json": record_of(name).to_json(), f"gs/x/{name}": "x"}
    source = write_tar(tmp_path / "evil.tar", members)
    with pytest.raises(ValueError, match=r"was not written by --export: .*evil' is no name of a file"):
        list(moving.import_tar(source, tmp_path / "a" / "cache"))
    assert content(tmp_path / "a") == {}
    assert not list(tmp_path.rglob("evil"))


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ({"gs/x.record.json": record_of("a").to_json()}, "does not begin with a list of downloads"),
        ({"contents.json": "no list"}, "does not begin with a list of downloads"),
        ({"contents.json": "{}"}, "does not begin with a list of downloads"),
        ({"contents.json": '["gs/x"]', "gs/x.record.json": record_of().to_json()}, "the record of gs/x names no files"),
        ({"contents.json": '["gs/x"]', "gs/x.record.json": "{}"}, "not a record of a download"),
        ({"contents.json": '["gs/x"]', "gs/y.record.json": "{}"}, r"expected gs/x\.record\.json, found gs/y\.record"),
        ({"contents.json": "[]", "gs/x.record.json": "{}"}, r"its list does not name 'gs/x\.record\.json'"),
    ],
)
def test_what_export_does_not_write_is_refused(tmp_path, members, message):
    with pytest.raises(ValueError, match=message):
        list(moving.import_tar(write_tar(tmp_path / "strange.tar", members), tmp_path / "cache"))
    assert content(tmp_path / "cache") == {}


def test_a_file_that_is_cut_off_between_downloads_is_noticed(exported, tmp_path):
    with tarfile.open(exported) as tar:
        offsets = {member.name: member.offset for member in tar.getmembers()}
    whole = exported.read_bytes()
    for name in ("https/tokenizer.record.json", "https/tokenizer"):
        exported.write_bytes(whole[: offsets[name]])
        there = tmp_path / name.replace("/", "+")
        with pytest.raises(ValueError, match=f"damaged or cut off: expected {name}, found None; copy it again"):
            list(moving.import_tar(exported, there))
        assert {path.split("/")[0] for path in content(there)} == {"gs"}  # what came before is in its place


def test_what_is_damaged_is_replaced_and_what_is_good_is_kept(filled, exported):
    (filled / "gs/weights/d/array").write_bytes(b"bad")
    (filled / "gs/weights/surplus").write_bytes(b"bad")
    before = (filled / "https/tokenizer").stat().st_ino
    assert list(moving.import_tar(exported, filled)) == [
        ("gs://bucket/weights", f"replaced what was damaged at {filled}/gs/weights"),
        ("gs://bucket/tokenizer", f"kept what is at {filled}/https/tokenizer"),
    ]
    assert {name for name in content(filled) if name.startswith("gs/weights/")} == {
        f"gs/weights/{name}" for name in WEIGHTS
    }
    assert all(record.state(entry).is_good for entry in record.entries(filled))
    assert (filled / "https/tokenizer").stat().st_ino == before
    assert not list(filled.rglob("*.partial"))


def test_what_is_damaged_stays_until_what_replaces_it_is_whole(filled, exported):
    (filled / "gs/weights/_METADATA").write_bytes(b"bad")
    before, whole = content(filled), exported.read_bytes()
    at = whole.index(WEIGHTS["d/array"]) + 1000
    exported.write_bytes(whole[:at] + b"!" + whole[at + 1 :])
    with pytest.raises(ValueError, match="is damaged"):
        list(moving.import_tar(exported, filled))
    assert content(filled) == before


def test_an_import_holds_the_lock_of_a_download(exported, tmp_path, monkeypatch):
    held = []

    @contextlib.contextmanager
    def locked(path):
        held.append((str(path.relative_to(tmp_path)), path.with_suffix("").exists()))
        yield
        held.append((str(path.relative_to(tmp_path)), path.with_suffix("").exists()))

    monkeypatch.setattr(disk, "locked", locked)
    (tmp_path / "there").mkdir()
    assert len(list(moving.import_tar(exported, tmp_path / "there"))) == 2
    assert held == [
        (f"there/{place}.lock", is_there) for place in ("gs/weights", "https/tokenizer") for is_there in (False, True)
    ]


def test_there_must_be_room(filled, exported, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=100))
    with pytest.raises(OSError, match=r"0\.00 GB more do not fit in"):
        list(moving.import_tar(exported, tmp_path / "there"))
    with pytest.raises(OSError, match=r"0\.00 GB more do not fit in"):
        moving.export(record.entries(filled), filled, tmp_path / "other.tar")
    assert content(tmp_path / "there") == {}
    assert not (tmp_path / "other.tar").exists()


def test_only_what_is_whole_is_exported(filled, tmp_path):
    target = tmp_path / "x.tar"
    (filled / "gs/weights/d/array").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"d/array has 5 bytes, not 25600; delete .*gs/weights and download it again"):
        moving.export(record.entries(filled), filled, target)
    put(filled, "gs/by_hand", {"a": b"1"}, has_record=False)
    with pytest.raises(ValueError, match=r"by_hand has no record of what arrived"):
        moving.export([entry for entry in record.entries(filled) if entry.path.name == "by_hand"], filled, target)
    assert not target.exists()
    target.write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"x\.tar exists; give another name"):
        moving.export([], filled, target)


def test_a_look_at_the_cache_names_what_is_wrong(filled):
    put(filled, "gs/by_hand", {"a": b"1"}, has_record=False)
    (filled / "gs/weights/_METADATA").unlink()
    (filled / "gs/weights/extra").write_bytes(b"")
    (filled / "https/tokenizer").write_bytes(b"piecez")
    states = {entry.path.name: record.state(entry) for entry in record.entries(filled)}
    assert states["by_hand"].is_good
    assert "not checked: " in str(states["by_hand"])
    assert states["weights"].problems == (
        f"{filled}/gs/weights/_METADATA is missing",
        f"{filled}/gs/weights/extra does not belong to it",
    )
    assert states["tokenizer"].problems == (
        f"{filled}/https/tokenizer is damaged: its SHA-256 is not that of what arrived",
    )
    assert str(states["tokenizer"]).startswith("damaged: gs://bucket/tokenizer, 0.00 GB in 1 files; delete ")
    record.record_file(filled / "gs/weights").write_text("{}")
    with pytest.raises(ValueError, match=r"weights\.record\.json: not a record of a download: KeyError\('files'\)"):
        record.entries(filled)


def run(cache, *args):
    command = [sys.executable, "scripts/fetch_weights.py", *map(str, args)]
    repository = pathlib.Path(__file__).parents[2]
    env = {"OPENPI_B1K_CACHE": str(cache), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=repository, env=env)


def test_the_script_moves_and_checks(filled, tmp_path):
    done = run(filled, "--export", tmp_path / "all.tar", "--check")
    assert done.returncode == 0, done.stderr
    there = tmp_path / "there"
    done = run(there, "--import", tmp_path / "all.tar")
    assert "gs://bucket/weights: now at" in done.stdout
    (there / "https/tokenizer").write_bytes(b"piecez")
    done = run(there, "--check")
    assert done.returncode == 1
    assert "good: gs://bucket/weights" in done.stdout
    assert "damaged: gs://bucket/tokenizer" in done.stdout
    done = run(there, "--list")
    assert f"gs://bucket/weights: 0.00 GB in 2 files at {there}/gs/weights\n" in done.stdout
    assert done.returncode == 0
    done = run(there, "--recipe", "pi05")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no recipe 'pi05'; recipes: debug, pi0")
    assert run(there).stderr.startswith("error: nothing to do")
