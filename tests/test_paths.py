import base64
import concurrent.futures
import hashlib
import http.server
import json
import pathlib
import subprocess
import sys
import threading
import types
import urllib.parse

import fsspec
import huggingface_hub
import pytest

from openpi_b1k import paths
from openpi_b1k.downloads import http as http_downloads
from openpi_b1k.downloads import record


class Server(http.server.ThreadingHTTPServer):
    """Answers like Google Cloud Storage for the objects it is given, and can misbehave."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.objects: dict[str, bytes] = {}
        self.requests: list[str] = []
        self.sent: list[tuple[str, int, int]] = []
        """Object, first byte and end of each reply."""
        self.broken: set[str] = set()
        self.damaged: set[str] = set()
        self.forbidden = False
        self.etags = True
        self.page_size = 2
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        url = urllib.parse.urlparse(self.path)
        self.server.requests.append(self.path)
        if self.server.forbidden:
            self.send_error(403)
        elif url.path == "/storage/v1/b/bucket/o":
            self.reply(self.listing(dict(urllib.parse.parse_qsl(url.query))))
        else:
            name = urllib.parse.unquote(url.path).removeprefix("/bucket/")
            content = self.server.objects.get(name)
            if content is None:
                self.send_error(404)
            else:
                self.reply(content, name)

    def listing(self, query: dict[str, str]) -> bytes:
        names = sorted(name for name in self.server.objects if name.startswith(query["prefix"]))
        start = int(query.get("pageToken", 0))
        page = names[start : start + self.server.page_size]
        sizes = {name: str(len(self.server.objects[name])) for name in page}
        reply = {"items": [{"name": name, "size": sizes[name], "md5Hash": self.md5(name)} for name in page]}
        following = start + self.server.page_size
        return json.dumps(reply | ({"nextPageToken": str(following)} if following < len(names) else {})).encode()

    def md5(self, name: str) -> str:
        return base64.b64encode(hashlib.md5(self.server.objects[name]).digest()).decode()

    def reply(self, content: bytes, name: str | None = None) -> None:
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        if self.server.etags and self.headers.get("If-Range") == etag:
            start = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-"))
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        if name is not None:
            self.send_header("x-goog-hash", f"crc32c=AAAAAA==,md5={self.md5(name)}")
            if self.server.etags:
                self.send_header("ETag", etag)
        self.end_headers()
        if name in self.server.damaged:
            content = content[:-1] + bytes([content[-1] ^ 1])
        end = (start + len(content)) // 2 if name in self.server.broken else len(content)
        self.wfile.write(content[start:end])
        if name is not None:
            self.server.sent.append((name, start, end))


@pytest.fixture
def server():
    server = Server()
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    monkeypatch.setattr("openpi_b1k.downloads.http.PAUSE_S", 0)


@pytest.fixture(autouse=True)
def cache(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    monkeypatch.setenv("OPENPI_B1K_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def left_over(cache: pathlib.Path) -> list[str]:
    files = [path for path in cache.rglob("*") if path.is_file() and not path.name.endswith((".lock", ".record.json"))]
    return sorted(str(path.relative_to(cache)) for path in files)


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


def test_addresses_have_places_of_their_own(cache):
    assert paths.cache_path("gs://bucket/a/b.model") == cache / "gs/bucket+a+b.model"
    addresses = ["gs://x/a/b", "gs://x/a+b", "gs://x/a%2Fb", "gs://x/a%2Bb", "hf://x/a/b", "gs://x/a b"]
    assert len({paths.cache_path(address) for address in addresses}) == len(addresses)


def test_a_file_is_downloaded_once(server, cache):
    server.objects = {"dir/tokenizer.model": b"x" * 3_000_000, "dir/tokenizer.model.bak": b"no"}
    path = paths.fetch("gs://bucket/dir/tokenizer.model", gcs_host=server.url)
    assert path == cache / "gs/bucket+dir+tokenizer.model"
    assert path.read_bytes() == server.objects["dir/tokenizer.model"]
    count = len(server.requests)
    assert paths.fetch("gs://bucket/dir/tokenizer.model", gcs_host=server.url) == path
    assert len(server.requests) == count
    assert left_over(cache) == ["gs/bucket+dir+tokenizer.model"]


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
    assert (cache / "gs/bucket+file.partial.download").read_bytes() == content[:3000]
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
    arrived = [name for name in left_over(cache) if not name.endswith((".download", ".etag"))]
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
    assert all(name.startswith("gs/bucket+dir.partial/") and not name.endswith("b") for name in left_over(cache))
    server.broken, server.requests[:] = set(), []
    path = paths.fetch("gs://bucket/dir", gcs_host=server.url)
    assert {file.name: file.read_bytes() for file in path.iterdir()} == {"a": b"aaaa", "b": b"bbbb", "c": b"cccc"}
    assert "/bucket/dir/b" in server.requests
    assert "/bucket/dir/a" not in server.requests


def test_a_download_leaves_a_record_of_its_files(server, cache):
    server.objects = {"dir/a": b"1", "dir/sub/b": b"22"}
    path = paths.fetch("gs://bucket/dir", gcs_host=server.url)
    (entry,) = record.entries(cache)
    digests = {name: hashlib.sha256(content).hexdigest() for name, content in (("a", b"1"), ("sub/b", b"22"))}
    assert entry.path == path
    assert entry.record == record.Record(
        "gs://bucket/dir", {"a": record.FileRecord(1, digests["a"]), "sub/b": record.FileRecord(2, digests["sub/b"])}
    )


@pytest.mark.parametrize("address", ["gs://bucket/none", "gs://bucket", "HOST/bucket/none"])
def test_nothing_there(server, cache, address):
    server.objects = {"nonesuch": b"x"}
    with pytest.raises(FileNotFoundError, match="nothing at"):
        paths.fetch(address.replace("HOST", server.url), gcs_host=server.url)
    assert left_over(cache) == []


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


class Hub:
    """The two calls made to huggingface_hub, on files held here."""

    def __init__(self, files: dict[str, str]) -> None:
        self.files, self.asked = files, []
        self.delivers = 99
        self.digests: dict[str, str] = {}

    def repo_info(self, repository, *, repo_type, revision, files_metadata) -> types.SimpleNamespace:
        assert files_metadata
        self.asked.append((repository, repo_type, revision))
        large = {name: types.SimpleNamespace(sha256=digest) for name, digest in self.digests.items()}
        siblings = [types.SimpleNamespace(rfilename=name, lfs=large.get(name)) for name in self.files]
        return types.SimpleNamespace(sha="f00", siblings=siblings)

    def snapshot_download(self, repository, *, repo_type, revision, allow_patterns, local_dir) -> None:
        self.asked.append((repository, repo_type, revision))
        for name in [*allow_patterns, ".cache/x"][: self.delivers]:
            file = pathlib.Path(local_dir) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.files.get(name, ""))


FILES = {"README.md": "r", "params/a": "1", "params/sub/b": "2", "params_2": "no"}


@pytest.fixture
def hub(monkeypatch) -> Hub:
    hub = Hub(FILES)
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: hub)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.snapshot_download)
    return hub


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


PROBE = """
import sys, openpi_b1k.paths
print([name for name in ("jax", "numpy", "huggingface_hub", "fsspec") if name in sys.modules])
"""


def test_importing_loads_nothing_heavy():
    run = subprocess.run([sys.executable, "-c", PROBE], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "[]"
