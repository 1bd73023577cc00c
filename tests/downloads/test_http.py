import concurrent.futures
import errno
import hashlib
import io
import pathlib
import shutil
import types

import pytest
import tqdm

from openpi_b1k import paths
from openpi_b1k.downloads import http as http_downloads
from openpi_b1k.downloads import record
from tests.downloads.servers import left_over


def test_a_file_is_downloaded_once(server, cache):
    server.objects = {"dir/tokenizer.model": b"x" * 3_000_000, "dir/tokenizer.model.bak": b"no"}
    path = paths.fetch("gs://bucket/dir/tokenizer.model", gcs_host=server.url)
    assert path == cache / "gs/bucket+dir+tokenizer.model"
    assert path.read_bytes() == server.objects["dir/tokenizer.model"]
    count = len(server.requests)
    assert paths.fetch("gs://bucket/dir/tokenizer.model", gcs_host=server.url) == path
    assert len(server.requests) == count
    assert left_over(cache) == ["gs/bucket+dir+tokenizer.model"]


@pytest.mark.parametrize("defect", ["broken", "damaged"])
def test_a_bad_download_without_etags_leaves_nothing(server, cache, defect):
    server.objects, server.etags = {"file": b"content"}, False
    getattr(server, defect).add("file")
    reason = {"broken": "broke off after 3 of 7 bytes|IncompleteRead", "damaged": "its MD5 or its size differs"}[defect]
    with pytest.raises(ConnectionError, match=reason) as caught:
        paths.fetch("gs://bucket/file", gcs_host=server.url)
    assert "scripts/fetch_weights.py gs://bucket/file --export weights.tar" in str(caught.value)
    assert f"put it at {cache}/gs/bucket+file by hand" in str(caught.value)
    assert "OPENPI_B1K_CACHE" in str(caught.value)
    assert left_over(cache) == []
    server.broken = server.damaged = set()
    assert paths.fetch("gs://bucket/file", gcs_host=server.url).read_bytes() == b"content"


def test_a_file_goes_on_where_it_broke_off(server, cache):
    content = bytes(range(200)) * 16
    server.objects, server.broken = {"file": content}, {"file"}
    with pytest.raises(ConnectionError, match=r"broke off after \d+ of 3200 bytes|IncompleteRead"):
        paths.fetch("gs://bucket/file", gcs_host=server.url)
    assert server.sent == [("file", 0, 1600), ("file", 1600, 2400), ("file", 2400, 2800), ("file", 2800, 3000)]
    assert (cache / "gs/bucket+file.partial.parts/content").read_bytes() == content[:3000]
    server.broken, server.sent[:] = set(), []
    path = paths.fetch("gs://bucket/file", gcs_host=server.url)
    assert server.sent == [("file", 3000, 3200)]
    assert path.read_bytes() == content
    assert left_over(cache) == ["gs/bucket+file"]


@pytest.mark.parametrize("change", ["content", "etags"])
def test_a_file_that_has_changed_or_cannot_be_continued_starts_again(server, change):
    server.objects, server.broken = {"file": b"old content"}, {"file"}
    with pytest.raises(ConnectionError):
        paths.fetch("gs://bucket/file", gcs_host=server.url)
    server.broken, server.sent[:] = set(), []
    if change == "content":
        server.objects = {"file": b"new contents"}
    else:
        server.etags = False
    path = paths.fetch("gs://bucket/file", gcs_host=server.url)
    assert path.read_bytes() == server.objects["file"]
    assert server.sent == [("file", 0, len(server.objects["file"]))]


def test_what_was_damaged_on_the_way_is_fetched_again(server, cache):
    server.objects, server.damaged = {"file": b"content"}, {"file"}
    with pytest.raises(ConnectionError, match="its MD5 or its size differs"):
        paths.fetch("gs://bucket/file", gcs_host=server.url)
    assert [start for _, start, _ in server.sent] == [0, 0, 0, 0]
    assert left_over(cache) == []


def test_an_interrupted_directory_keeps_what_arrived_and_stops_the_rest(server, cache, monkeypatch):
    server.objects = {f"dir/{number}": b"x" * 10 for number in range(20)}
    received = http_downloads._receive  # noqa: SLF001  # where a signal would hit
    monkeypatch.setattr(http_downloads, "AT_ONCE", 1)

    def interrupted(file, *args):
        if file.path == "13":
            raise KeyboardInterrupt
        received(file, *args)

    monkeypatch.setattr(http_downloads, "_receive", interrupted)
    with pytest.raises(KeyboardInterrupt):
        paths.fetch("gs://bucket/dir", gcs_host=server.url)
    arrived = [name for name in left_over(cache) if name.startswith("gs/bucket+dir.partial/")]
    assert 0 < len(arrived) < 20
    monkeypatch.setattr(http_downloads, "_receive", received)
    server.sent.clear()
    assert len(list(paths.fetch("gs://bucket/dir", gcs_host=server.url).iterdir())) == 20
    assert len(server.sent) == 20 - len(arrived)


def test_a_directory_goes_on_where_it_broke_off(server, cache):
    server.objects = {f"dir/{name}": name.encode() * 4 for name in "abc"}
    server.broken = {"dir/b"}
    with pytest.raises(ConnectionError):
        paths.fetch("gs://bucket/dir", gcs_host=server.url)
    assert not paths.cache_path("gs://bucket/dir").exists()
    assert "gs/bucket+dir.partial/a" in left_over(cache)
    assert "gs/bucket+dir.partial/b" not in left_over(cache)
    server.broken, server.requests[:] = set(), []
    path = paths.fetch("gs://bucket/dir", gcs_host=server.url)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {"a": b"aaaa", "b": b"bbbb", "c": b"cccc"}
    assert "/bucket/dir/b" in server.requests
    assert "/bucket/dir/a" not in server.requests
    assert left_over(cache) == ["gs/bucket+dir/a", "gs/bucket+dir/b", "gs/bucket+dir/c"]


@pytest.mark.parametrize("now", [b"other", b"abcd and more"])
def test_a_file_that_arrived_and_has_changed_since_is_fetched_again(server, now):
    server.objects, server.broken = {"dir/a": b"abcde", "dir/b": b"12345"}, {"dir/b"}
    with pytest.raises(ConnectionError):
        paths.fetch("gs://bucket/dir", gcs_host=server.url)
    server.objects["dir/a"], server.broken = now, set()
    path = paths.fetch("gs://bucket/dir", gcs_host=server.url)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {"a": now, "b": b"12345"}


def test_what_the_server_does_not_list_any_more_is_left_out(server, cache):
    server.objects = {f"dir/{name}": b"12345" for name in ("a", "gone", "was/deeper", "broken")}
    server.broken = {"dir/broken"}
    with pytest.raises(ConnectionError):
        paths.fetch("gs://bucket/dir", gcs_host=server.url)
    (cache / "gs/bucket+dir.partial/a.download").write_bytes(b"12")
    server.objects = {"dir/a": b"12345", "dir/was": b"a file"}
    path = paths.fetch("gs://bucket/dir", gcs_host=server.url)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {"a": b"12345", "was": b"a file"}
    assert left_over(cache) == ["gs/bucket+dir/a", "gs/bucket+dir/was"]


@pytest.mark.parametrize("address", ["gs://bucket/file", "HOST/bucket/file"])
@pytest.mark.parametrize("where", ["replace", "rename"])  # of a part to its target, of the whole to its place
def test_what_was_whole_when_it_was_interrupted_is_not_asked_for_again(server, cache, monkeypatch, address, where):
    def interrupted(*args):
        raise KeyboardInterrupt

    server.objects = {"file": b"content"}
    address = address.replace("HOST", server.url)
    with monkeypatch.context() as patch:
        patch.setattr(pathlib.Path, where, interrupted)
        with pytest.raises(KeyboardInterrupt):
            paths.fetch(address, gcs_host=server.url)
    server.requests.clear()
    assert paths.fetch(address, gcs_host=server.url).read_bytes() == b"content"
    assert "/bucket/file" not in server.requests
    assert len(left_over(cache)) == 1


def test_a_part_that_is_longer_than_the_file_is_dropped(server, cache):
    server.objects, server.broken = {"file": b"content"}, {"file"}
    with pytest.raises(ConnectionError):
        paths.fetch("gs://bucket/file", gcs_host=server.url)
    (cache / "gs/bucket+file.partial.parts/content").write_bytes(b"something else")
    server.broken, server.sent[:] = set(), []
    assert paths.fetch("gs://bucket/file", gcs_host=server.url).read_bytes() == b"content"
    assert server.sent == [("file", 0, 7)]


def test_a_busy_server_is_asked_again(server):
    server.objects, server.errors = {"file": b"content"}, [503, 200, 429, 500]
    assert paths.fetch("gs://bucket/file", gcs_host=server.url).read_bytes() == b"content"
    assert [request.partition("?")[0] for request in server.requests] == [
        *["/storage/v1/b/bucket/o"] * 2, *["/bucket/file"] * 3
    ]  # fmt: skip
    server.objects["other"], server.errors, server.requests[:] = b"", [503] * 9, []
    with pytest.raises(ConnectionError, match="could not download gs://bucket/other: HTTP Error 503"):
        paths.fetch("gs://bucket/other", gcs_host=server.url)
    assert len(server.requests) == 4
    server.errors, server.requests[:] = [410], []
    with pytest.raises(ConnectionError, match="HTTP Error 410"):
        paths.fetch("gs://bucket/other", gcs_host=server.url)
    assert len(server.requests) == 1


def test_a_disk_that_is_too_small_is_known_beforehand(server, monkeypatch):
    server.objects = {"dir/a": b"x" * 60, "dir/b": b"x" * 60}
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=119))
    with pytest.raises(OSError, match=r"GB more do not fit in .*GB free.* Make room for .*bucket\+dir") as caught:
        paths.fetch("gs://bucket/dir", gcs_host=server.url)
    assert caught.value.errno == errno.ENOSPC
    assert not server.sent
    monkeypatch.setattr(shutil, "disk_usage", lambda path: types.SimpleNamespace(free=120))
    paths.fetch("gs://bucket/dir", gcs_host=server.url)


def test_a_disk_that_gets_full_is_no_matter_of_the_network(server, monkeypatch):
    calls = []

    def full(*args):
        calls.append(args)
        raise OSError(errno.ENOSPC, "No space left on device")

    server.objects = {"file": b"content"}
    monkeypatch.setattr(http_downloads, "_receive", full)
    with pytest.raises(OSError, match=r"No space left on device.* Make room for .*, or set OPENPI_B1K_CACHE") as caught:
        paths.fetch("gs://bucket/file", gcs_host=server.url)
    assert not isinstance(caught.value, ConnectionError)
    assert len(calls) == 1


@pytest.fixture
def bars(monkeypatch) -> list[tqdm.tqdm]:
    made = []

    def progress(name, size):
        made.append(tqdm.tqdm(total=size, file=io.StringIO()))
        return made[-1]

    monkeypatch.setattr(http_downloads, "progress", progress)
    return made


@pytest.mark.parametrize("address", ["gs://bucket/dir", "gs://bucket/dir/b", "HOST/bucket/dir/b"])
def test_the_bar_counts_what_had_arrived_before(server, bars, address):
    server.objects, server.broken = {"dir/a": b"x" * 10, "dir/b": b"x" * 30}, {"dir/b"}
    for _ in range(2):
        with pytest.raises(ConnectionError):
            paths.fetch(address.replace("HOST", server.url), gcs_host=server.url)
    server.broken = set()
    paths.fetch(address.replace("HOST", server.url), gcs_host=server.url)
    assert bars[-1].n == bars[-1].total == (40 if address.endswith("dir") else 30)


def test_a_file_that_starts_again_takes_only_itself_out_of_the_bar(server, bars, monkeypatch):
    server.objects, server.etags = {f"dir/{name}": b"x" * 10 for name in "abc"}, False
    server.broken, receive = {"dir/a", "dir/c"}, http_downloads._receive  # noqa: SLF001  # one attempt

    def mended(*args):
        try:
            receive(*args)
        finally:
            server.broken.clear()

    monkeypatch.setattr(http_downloads, "_receive", mended)
    paths.fetch("gs://bucket/dir", gcs_host=server.url)
    assert bars[-1].n == 30


def test_names_like_those_of_records_and_locks_have_places_of_their_own(server):
    names = ["a", "a.record.json", "a.lock", "a.partial", "a.partial.parts", "a.download", "a.hf"]
    server.objects, server.page_size = {name: name.encode() for name in names}, 99
    places = [paths.fetch(f"gs://bucket/{name}", gcs_host=server.url) for name in names]
    assert [place.read_text() for place in places] == names
    entries = record.entries(places[0].parents[1])
    assert {entry.path for entry in entries} == set(places)
    assert all(record.state(entry).is_good for entry in entries)


def test_a_download_leaves_a_record_of_its_files(server, cache):
    server.objects = {"dir/a": b"1", "dir/sub/b": b"22"}
    path = paths.fetch("gs://bucket/dir", gcs_host=server.url)
    (entry,) = record.entries(cache)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in (("a", b"1"), ("sub/b", b"22"))}
    assert entry.path == path
    assert entry.record == record.Record(
        "gs://bucket/dir", {"a": record.FileRecord(1, digests["a"]), "sub/b": record.FileRecord(2, digests["sub/b"])}
    )


def test_without_a_network_it_says_where_to_put_the_file(server, cache):
    closed = "http://127.0.0.1:9"
    with pytest.raises(ConnectionError, match=r"could not download gs://bucket/a/b: .* put it at .*gs/bucket\+a\+b by"):
        paths.fetch("gs://bucket/a/b", gcs_host=closed)
    by_hand = cache / "gs/bucket+a+b"
    by_hand.write_text("by hand")
    assert paths.fetch("gs://bucket/a/b", gcs_host=closed) == by_hand


def test_http_files(server):
    server.objects = {"x.model": b"content"}
    assert paths.fetch(f"{server.url}/bucket/x.model").read_bytes() == b"content"
    server.damaged = {"y.model"}
    server.objects["y.model"] = b"content"
    with pytest.raises(ConnectionError, match="its MD5 or its size differs"):
        paths.fetch(f"{server.url}/bucket/y.model")


def test_one_of_many_downloads_and_the_others_wait(server):
    server.objects = {"file": b"x" * 2_000_000}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: paths.fetch("gs://bucket/file", gcs_host=server.url), range(4)))
    assert len(set(found)) == 1
    assert server.requests.count("/bucket/file") == 1
