import hashlib
import shutil
import types

import fsspec
import pytest

from openpi_b1k import paths
from tests.downloads.servers import FILES, left_over


def test_a_directory_with_pages_blanks_and_similar_siblings(server):
    server.objects = {
        "base/params/_METADATA": b"m", "base/params/d/a b%": b"1", "base/params/d/c": b"", "base/params/": b"",
        "base/params_2/x": b"no", "base/other": b"no",
    }  # fmt: skip
    path = paths.fetch("gs://bucket/base/params/", gcs_host=server.url)
    found = {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}
    assert found == {"_METADATA": b"m", "d/a b%": b"1", "d/c": b""}


def test_a_file_of_a_directory_does_not_stand_for_the_directory(server):
    server.objects = {"base/a": b"1", "base/b": b"2"}
    paths.fetch("gs://bucket/base/a", gcs_host=server.url)
    path = paths.fetch("gs://bucket/base", gcs_host=server.url)
    assert sorted(file.name for file in path.iterdir()) == ["a", "b"]


@pytest.mark.parametrize("address", ["gs://bucket/none", "gs://bucket", "HOST/bucket/none"])
def test_nothing_there(server, cache, address):
    server.objects = {"nonesuch": b"x"}
    with pytest.raises(FileNotFoundError, match="nothing at"):
        paths.fetch(address.replace("HOST", server.url), gcs_host=server.url)
    assert left_over(cache) == []


def test_a_private_bucket_says_what_it_needs(server, monkeypatch):
    def missing(address: str) -> None:
        raise ImportError(address)

    server.forbidden = True
    monkeypatch.setattr(fsspec.core, "url_to_fs", missing)
    with pytest.raises(ImportError, match=r"gs://bucket/a needs credentials .*`uv run --extra gcs`"):
        paths.fetch("gs://bucket/a", gcs_host=server.url)
    with pytest.raises(ImportError, match=r"s3://bucket/a needs .*`uv run --with s3fs`"):
        paths.fetch("s3://bucket/a")


def test_credentials_are_used_for_what_is_not_public(server, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/private/dir/a": b"1", "/private/dir/sub/b": b"2"})

    def in_memory(address: str) -> tuple:
        return memory, "/" + address.partition("://")[2].replace("bucket", "private")

    monkeypatch.setattr(fsspec.core, "url_to_fs", in_memory)
    server.forbidden = True
    path = paths.fetch("gs://bucket/dir", gcs_host=server.url)
    assert (path / "a").read_bytes() == b"1"
    assert (path / "sub/b").read_bytes() == b"2"
    assert paths.fetch("s3://bucket/dir/a").read_bytes() == b"1"
    with pytest.raises(FileNotFoundError, match="nothing at s3://bucket/none"):
        paths.fetch("s3://bucket/none")


@pytest.mark.parametrize(
    ("address", "asked", "expected"),
    [
        ("hf://org/name/params", ("org/name", "model", None), {"a": "1", "sub/b": "2"}),
        ("hf://datasets/org/name@v2.1/params", ("org/name", "dataset", "v2.1"), {"a": "1", "sub/b": "2"}),
        ("hf://org/name", ("org/name", "model", None), FILES),
        ("hf://org/name/params/a", ("org/name", "model", None), {".": "1"}),
    ],
)  # fmt: skip
def test_hugging_face(hub, cache, address, asked, expected):
    path = paths.fetch(address)
    files = [path] if path.is_file() else [file for file in path.rglob("*") if file.is_file()]
    assert {str(file.relative_to(path)): file.read_text() for file in files} == expected
    assert hub.asked == [asked, (*asked[:2], "f00")]
    assert paths.fetch(address) == path
    assert len(hub.asked) == 2
    assert len(left_over(cache)) == len(expected)


def test_hugging_face_refusals(hub, cache):
    with pytest.raises(ValueError, match=r"hf://org names no repository; it must be hf://\[datasets/\]ORG/NAME"):
        paths.fetch("hf://org")
    with pytest.raises(FileNotFoundError, match="nothing at hf://org/name/none: the repository has no none"):
        paths.fetch("hf://org/name/none")
    hub.delivers = 1
    with pytest.raises(ConnectionError, match=r"could not download hf://org/name/params: 1 of 2 files did not arrive"):
        paths.fetch("hf://org/name/params")
    assert not paths.cache_path("hf://org/name/params").exists()


def test_what_the_hub_says_of_large_files_is_checked(hub, cache):
    hub.digests = {"params/a": hashlib.sha256(b"1").hexdigest(), "params/sub/b": hashlib.sha256(b"3").hexdigest()}
    with pytest.raises(ConnectionError, match=r"1 files arrived damaged, such as 'sub/b'"):
        paths.fetch("hf://org/name/params")
    assert left_over(cache) == []
    hub.digests["params/sub/b"] = hashlib.sha256(b"2").hexdigest()
    assert paths.fetch("hf://org/name/params").is_dir()


@pytest.mark.parametrize("name", ["../../../evil", "/evil", "a//evil", "./evil", "a/../evil"])
def test_names_that_lead_out_of_the_directory_are_refused(server, cache, name):
    server.objects = {"dir/a": b"1", f"dir/{name}": b"evil"}
    with pytest.raises(ValueError, match=r"gs://bucket/dir lists '.*evil', which is no name of a file inside"):
        paths.fetch("gs://bucket/dir", gcs_host=server.url)
    assert not [*cache.parent.rglob("evil"), *cache.rglob("a")]


def test_names_that_lead_out_are_refused_whoever_lists_them(hub, cache, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.pipe({"/listed/dir/a": b"1"})
    monkeypatch.setattr(memory, "find", lambda path: ["/listed/dir/a", "/listed/dir/../../evil"])
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda address: (memory, "/listed/dir"))
    with pytest.raises(ValueError, match=r"s3://bucket/dir lists '\.\./\.\./evil'"):
        paths.fetch("s3://bucket/dir")
    hub.files = {"params/../../evil": "evil"}
    with pytest.raises(ValueError, match=r"hf://org/name lists 'params/\.\./\.\./evil'"):
        paths.fetch("hf://org/name")
    assert left_over(cache) == []


def test_a_bucket_that_is_not_there_is_named_by_its_address(server):
    with pytest.raises(FileNotFoundError, match=r"nothing at gs://bukket/a: there is no bucket 'bukket'"):
        paths.fetch("gs://bukket/a", gcs_host=server.url)


def test_a_directory_without_files_is_nothing(cache, monkeypatch):
    memory = fsspec.filesystem("memory")
    memory.makedirs("/empty/dir", exist_ok=True)
    monkeypatch.setattr(fsspec.core, "url_to_fs", lambda address: (memory, "/empty/dir"))
    with pytest.raises(FileNotFoundError, match="nothing at s3://bucket/dir"):
        paths.fetch("s3://bucket/dir")
    assert not paths.cache_path("s3://bucket/dir").exists()
    assert not list(cache.rglob("*.record.json"))


@pytest.mark.parametrize("address", ["hf://org/name/params", "hf://org/name"])
def test_what_the_hub_sent_and_was_not_recorded_does_no_harm(hub, cache, address):
    partial = paths.cache_path(address).parent / f"{paths.cache_path(address).name}.partial"
    (partial / "sub").mkdir(parents=True)
    (partial / "sub/gone").write_text("not listed any more")
    path = paths.fetch(address)
    files = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}
    assert files == ({"a", "sub/b"} if address.endswith("params") else set(FILES))
    assert len(left_over(cache)) == len(files)


def test_what_does_not_fit_is_not_fetched_from_the_hub(hub, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=1))
    with pytest.raises(OSError, match="GB more do not fit in"):
        paths.fetch("hf://org/name/params")
    assert len(hub.asked) == 1
