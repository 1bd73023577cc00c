import io
import pathlib
import subprocess
import sys
import tarfile

import pytest

from openpi_b1k.downloads import moving, record

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
    return {str(file.relative_to(cache)): file.read_bytes() for file in cache.rglob("*") if file.is_file()}


@pytest.fixture
def cache(tmp_path):
    put(tmp_path / "cache", "gs/weights", WEIGHTS)
    put(tmp_path / "cache", "https/tokenizer", TOKENIZER)
    return tmp_path / "cache"


@pytest.fixture
def exported(cache, tmp_path):
    moving.export(record.entries(cache), cache, tmp_path / "weights.tar")
    return tmp_path / "weights.tar"


def test_a_cache_arrives_as_it_was(cache, exported, tmp_path):
    there = tmp_path / "there"
    assert list(moving.import_tar(exported, there)) == [
        ("gs://bucket/weights", f"now at {there}/gs/weights"),
        ("gs://bucket/tokenizer", f"now at {there}/https/tokenizer"),
    ]
    assert content(there) == content(cache)
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


@pytest.mark.parametrize(
    "names",
    [
        ["gs/../../evil.record.json"], ["/etc/x.record.json"], ["other/x.record.json"], ["gs/x"], ["gs/.x.record.json"],
        ["gs/x.record.json", "gs/x/../../evil"],
    ],
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(tmp_path, names):
    evil = record.Record("gs://x", {names[1].removeprefix("gs/x/"): record.FileRecord(1, "")} if names[1:] else {})
    with tarfile.open(tmp_path / "evil.tar", "w") as tar:
        for name in names:
            data = evil.to_json().encode() if name.endswith(".json") else b"x"
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    with pytest.raises(ValueError, match=r"was not written by --export|is damaged or cut off"):
        list(moving.import_tar(tmp_path / "evil.tar", tmp_path / "a" / "cache"))
    assert not list(tmp_path.rglob("evil")) + list(tmp_path.rglob("*.record.json"))


def test_only_what_is_whole_is_exported(cache, tmp_path):
    target = tmp_path / "x.tar"
    (cache / "gs/weights/d/array").write_bytes(b"other")
    with pytest.raises(ValueError, match=r"d/array has 5 bytes, not 25600; delete .*gs/weights and download it again"):
        moving.export(record.entries(cache), cache, target)
    put(cache, "gs/by_hand", {"a": b"1"}, has_record=False)
    with pytest.raises(ValueError, match=r"by_hand has no record of what arrived"):
        moving.export([entry for entry in record.entries(cache) if entry.path.name == "by_hand"], cache, target)
    assert not target.exists()
    target.write_bytes(b"")
    with pytest.raises(FileExistsError, match=r"x\.tar exists; give another name"):
        moving.export([], cache, target)


def test_a_look_at_the_cache_names_what_is_wrong(cache):
    put(cache, "gs/by_hand", {"a": b"1"}, has_record=False)
    (cache / "gs/weights/_METADATA").unlink()
    (cache / "gs/weights/extra").write_bytes(b"")
    (cache / "https/tokenizer").write_bytes(b"piecez")
    states = {entry.path.name: record.state(entry) for entry in record.entries(cache)}
    assert states["by_hand"].is_good
    assert "not checked: " in str(states["by_hand"])
    assert states["weights"].problems == (
        f"{cache}/gs/weights/_METADATA is missing",
        f"{cache}/gs/weights/extra does not belong to it",
    )
    assert states["tokenizer"].problems == (
        f"{cache}/https/tokenizer is damaged: its SHA-256 is not that of what arrived",
    )
    assert str(states["tokenizer"]).startswith("damaged: gs://bucket/tokenizer, 0.00 GB in 1 files; delete ")
    record.record_file(cache / "gs/weights").write_text("{}")
    with pytest.raises(ValueError, match=r"weights\.record\.json: not a record of a download: KeyError\('files'\)"):
        record.entries(cache)


def run(cache, *args):
    command = [sys.executable, "scripts/fetch_weights.py", *map(str, args)]
    repository = pathlib.Path(__file__).parents[2]
    env = {"OPENPI_B1K_CACHE": str(cache), "PATH": "/usr/bin:/bin"}
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=repository, env=env)


def test_the_script_moves_and_checks(cache, tmp_path):
    done = run(cache, "--export", tmp_path / "all.tar", "--check")
    assert done.returncode == 0, done.stderr
    assert "on the other machine: uv run scripts/fetch_weights.py --import all.tar" in done.stdout
    there = tmp_path / "there"
    done = run(there, "--import", tmp_path / "all.tar")
    assert "gs://bucket/weights: now at" in done.stdout
    (there / "https/tokenizer").write_bytes(b"piecez")
    done = run(there, "--check")
    assert done.returncode == 1
    assert "good: gs://bucket/weights" in done.stdout
    assert "damaged: gs://bucket/tokenizer" in done.stdout
    done = run(there, "--recipe", "pi05")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no recipe 'pi05'; recipes: debug, pi0")
    assert run(there).stderr.startswith("error: nothing to do")
