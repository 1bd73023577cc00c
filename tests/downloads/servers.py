"""Servers that tests download from: a bucket of Google Cloud Storage, and the Hugging Face Hub."""

import base64
import hashlib
import http.server
import json
import pathlib
import types
import urllib.parse


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
        self.errors: list[int] = []
        """Statuses of the next replies; 200 stands for a right one."""
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
        error = self.server.errors.pop(0) if self.server.errors else 200
        if self.server.forbidden or error != 200:
            self.send_error(403 if self.server.forbidden else error)
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
        if start >= len(content) > 0:
            return self.send_error(416)
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
        return None


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
        siblings = [
            types.SimpleNamespace(rfilename=name, size=len(text), lfs=large.get(name))
            for name, text in self.files.items()
        ]
        return types.SimpleNamespace(sha="f00", siblings=siblings)

    def snapshot_download(self, repository, *, repo_type, revision, allow_patterns, local_dir) -> None:
        self.asked.append((repository, repo_type, revision))
        for name in [*allow_patterns, ".cache/x"][: self.delivers]:
            file = pathlib.Path(local_dir) / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(self.files.get(name, ""))


FILES = {"README.md": "r", "params/a": "1", "params/sub/b": "2", "params_2": "no"}


def left_over(cache: pathlib.Path) -> list[str]:
    files = [path for path in cache.rglob("*") if path.is_file() and not path.name.endswith((".lock", ".record.json"))]
    return sorted(str(path.relative_to(cache)) for path in files)
