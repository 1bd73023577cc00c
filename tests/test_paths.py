import pathlib
import subprocess
import sys

import pytest

from openpi_b1k import paths


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("OPENPI_B1K_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_cache_dir(monkeypatch, cache):
    assert paths.cache_dir() == cache
    monkeypatch.delenv("OPENPI_B1K_CACHE")
    assert paths.cache_dir() == pathlib.Path.home() / ".cache/openpi_b1k"


def test_data_root(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    demos = tmp_path / "datasets/2025-challenge-demos"
    with pytest.raises(FileNotFoundError) as caught:
        paths.data_root(None, "2025")
    message = str(caught.value)
    command = "uv run scripts/download_dataset.py --generation 2025 --root datasets/2025-challenge-demos"
    assert command in message
    assert "--data.root" in message
    demos.mkdir(parents=True)
    assert paths.data_root(None, "2025").samefile(demos)
    monkeypatch.setenv("OPENPI_B1K_DATA", str(tmp_path))
    assert paths.data_root(None, "2025") == tmp_path
    assert paths.data_root(str(demos), "2026") == demos
    with pytest.raises(FileNotFoundError, match=r"no demonstrations at /nowhere; .*--generation 2026"):
        paths.data_root("/nowhere", "2026")


def test_local_paths(tmp_path):
    (tmp_path / "a").write_text("x")
    assert paths.fetch(str(tmp_path / "a")) == tmp_path / "a"
    assert paths.fetch(str(tmp_path)) == tmp_path
    with pytest.raises(FileNotFoundError, match=f"nothing at {tmp_path}/b .*gs://"):
        paths.fetch(str(tmp_path / "b"))


def test_shipped_files():
    assert paths.fetch("package:sample_tokenizer.model").is_file()
    for name in ("other.model", "../paths.py"):
        with pytest.raises(FileNotFoundError, match=r"in the package; there are: sample_tokenizer\.model"):
            paths.fetch(f"package:{name}")


def test_an_unknown_kind_of_address_is_refused():
    with pytest.raises(ValueError, match="cannot fetch 'ftp://x/y'; an address is a local path, gs://"):
        paths.fetch("ftp://x/y")


@pytest.mark.parametrize("address", ["gs://", "gs://..", "gs://.", "hf://", "hf:///", "s3://b/../c", "https://"])
def test_an_address_that_names_nothing_is_refused(address):
    with pytest.raises(ValueError, match=f"'{address}' names nothing that could be fetched; an address is a local"):
        paths.fetch(address)


@pytest.mark.parametrize(
    ("address", "meant"),
    [
        ("gs:/bucket/a", "gs://bucket/a"),
        ("hf:org/name", "hf://org/name"),
        ("https://huggingface.co/org/name/blob/main/params/a", "hf://org/name/params/a"),
        ("https://huggingface.co/org/name/tree/v2", "hf://org/name@v2"),
        ("https://hf.co/datasets/org/name/blob/v2/a?x=1", "hf://datasets/org/name@v2/a"),
    ],
)
def test_what_was_meant_is_told(address, meant):
    with pytest.raises(ValueError, match=rf"(did you mean|use) {meant}\??$"):
        paths.fetch(address)


def test_addresses_have_places_of_their_own(cache):
    assert paths.cache_path("gs://bucket/a/b.model") == cache / "gs/bucket+a+b.model"
    addresses = ["gs://x/a/b", "gs://x/a+b", "gs://x/a%2Fb", "gs://x/a%2Bb", "hf://x/a/b", "gs://x/a b"]
    assert len({paths.cache_path(address) for address in addresses}) == len(addresses)


PROBE = """
import sys, openpi_b1k.paths
print([name for name in ("jax", "numpy", "huggingface_hub", "fsspec") if name in sys.modules])
"""


def test_importing_loads_nothing_heavy():
    run = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"
