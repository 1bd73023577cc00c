"""Files from HTTP servers: resumed where they broke off, checked, several at once.

What has arrived of a file lies in `<target>.parts`, beside it what the server said of it. A later attempt, also one of
another process, asks for the rest of just that; a server that has something else by now, or cannot continue, starts
again. Only whole files get to the target.
"""

import concurrent.futures
import dataclasses
import http.client
import json
import pathlib
import shutil
import threading
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import TypeVar

import tqdm

from openpi_b1k.downloads import disk

ATTEMPTS = 4
PAUSE_S = 2.0
"""Before the second attempt; doubled before each one after that."""
AT_ONCE = 8
TIMEOUT_S = 60
BLOCK = 1 << 20

T = TypeVar("T")


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file on an HTTP server, with what is known about it."""

    url: str
    path: str = ""
    """Where it lies in the directory it belongs to."""
    size: int | None = None
    md5: str | None = None
    """Base64, as Google Cloud Storage gives it."""


class DamagedError(ConnectionError):
    """What arrived is not what the server has."""


def open_url(url: str, headers: dict[str, str] | None = None) -> http.client.HTTPResponse:
    """Returns the response to a GET request.

    Raises:
        FileNotFoundError: there is nothing at the address.
        OSError: the server cannot be reached, or answers with an error.
    """
    headers = {"User-Agent": "openpi_b1k", "Accept-Encoding": "identity"} | (headers or {})
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.NOT_FOUND:
            raise FileNotFoundError(f"nothing at {url}") from error
        raise


def read(url: str) -> bytes:
    """Returns what is at an address, after several attempts if need be; raises what `open_url` does."""

    def attempt() -> bytes:
        with open_url(url) as response:
            return response.read()

    return _retried(attempt, threading.Event())


def download(files: list[RemoteFile], target: pathlib.Path) -> None:
    """Downloads one file to `target`, or those of a directory below it; what arrived before is kept if it is right.

    When it is interrupted or fails, what has arrived stays, and the next call goes on with it. `drop_parts` deletes
    what it noted beside the target.

    Raises:
        FileNotFoundError: a file is not on the server any more.
        OSError: there is no room, or a file did not arrive after several attempts.
    """
    disk.keep_only(target, {target / file.path for file in files})
    parts = {file: _Part.of(file, target) for file in files}
    disk.keep_only(_parts(target), {path for part in parts.values() for path in (part.content, part.note)})
    missing = [file for file in files if not parts[file].is_whole(file, target / file.path)]
    disk.require_room(target.parent, sum(max((file.size or 0) - parts[file].num_bytes, 0) for file in missing))
    sizes = [file.size for file in files]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    stop = threading.Event()
    with (
        progress(target.name.removesuffix(".partial"), total) as bar,
        concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        bar.update(sum(file.size or 0 for file in set(files) - set(missing)))
        running = [pool.submit(_fetch, file, target / file.path, parts[file], _Counter(bar), stop) for file in missing]
        try:
            for future in concurrent.futures.as_completed(running):
                future.result()
        except BaseException:  # also Ctrl-C: the other files stop where they are
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def drop_parts(target: pathlib.Path) -> None:
    """Deletes what `download` noted beside `target`."""
    shutil.rmtree(_parts(target), ignore_errors=True)


def progress(name: str, size: int | None) -> tqdm.tqdm:
    """Returns a bar that counts bytes; none is drawn where nobody looks."""
    return tqdm.tqdm(desc=name, total=size, unit="B", unit_scale=True, disable=None)


@dataclasses.dataclass
class _Counter:
    """The bytes of one file in a bar that several files share."""

    bar: tqdm.tqdm
    num_bytes: int = 0

    def set(self, num_bytes: int) -> None:
        """Makes the bar count so many bytes of the file, also fewer than before."""
        with self.bar.get_lock():
            self.bar.update(num_bytes - self.num_bytes)
        self.num_bytes = num_bytes


@dataclasses.dataclass(frozen=True)
class _Part:
    """What has arrived of a file, and what the server said of it: ETag, size and MD5."""

    content: pathlib.Path
    note: pathlib.Path

    @classmethod
    def of(cls, file: RemoteFile, target: pathlib.Path) -> "_Part":
        return cls(_parts(target) / "content" / file.path, _parts(target) / "notes" / file.path)

    @property
    def num_bytes(self) -> int:
        return self.content.stat().st_size if self.content.is_file() else 0

    def told(self) -> dict:
        try:
            return json.loads(self.note.read_text())
        except (FileNotFoundError, ValueError):
            return {}

    def is_whole(self, file: RemoteFile, content: pathlib.Path) -> bool:
        """Returns whether `content` is all of the file; what the server says now counts more than what it said."""
        told = self.told()
        size = file.size if file.size is not None else told.get("size")
        if not content.is_file() or size is None or content.stat().st_size != size:
            return False
        md5 = file.md5 or told.get("md5")
        return bool(told) if md5 is None else disk.md5(content) == md5

    def keep(self, response: http.client.HTTPResponse, size: int | None, md5: str | None) -> None:
        """Notes what is arriving, if the server says it in a way that tells one content from another."""
        etag = response.headers.get("ETag", "")
        if etag.startswith('"'):
            self.note.parent.mkdir(parents=True, exist_ok=True)
            self.note.write_text(json.dumps({"etag": etag, "size": size, "md5": md5}))
        else:  # weak ones, W/"...", may be the same for other bytes
            self.note.unlink(missing_ok=True)

    def drop(self) -> None:
        self.content.unlink(missing_ok=True)
        self.note.unlink(missing_ok=True)


def _parts(target: pathlib.Path) -> pathlib.Path:
    return target.parent / f"{target.name}.parts"


def _retried(action: Callable[[], T], stop: threading.Event) -> T:
    """Returns what the action does, in several attempts where the next one may do better."""
    for attempt in range(ATTEMPTS - 1):
        try:
            return action()
        except (OSError, http.client.HTTPException) as error:
            if stop.is_set() or not _may_pass(error):
                raise
        stop.wait(PAUSE_S * 2**attempt)
    return action()


def _may_pass(error: Exception) -> bool:
    if isinstance(error, urllib.error.HTTPError):
        waits = {http.HTTPStatus.REQUEST_TIMEOUT, http.HTTPStatus.TOO_MANY_REQUESTS}
        return error.code in waits or error.code >= http.HTTPStatus.INTERNAL_SERVER_ERROR
    return not isinstance(error, FileNotFoundError) and not disk.is_to_blame(error)


def _fetch(file: RemoteFile, target: pathlib.Path, part: _Part, counter: _Counter, stop: threading.Event) -> None:
    """Downloads one file; nothing is at `target` before it is whole."""

    def attempt() -> None:
        if part.is_whole(file, part.content):
            counter.set(part.num_bytes)
        else:
            _receive(file, part, counter, stop)

    for folder in (part.content.parent, target.parent):
        folder.mkdir(parents=True, exist_ok=True)
    _retried(attempt, stop)
    part.content.replace(target)


def _receive(file: RemoteFile, part: _Part, counter: _Counter, stop: threading.Event) -> None:
    """Receives what is missing of one file, and checks it."""
    etag = part.told().get("etag")
    start = part.num_bytes if etag else 0
    try:
        response = open_url(file.url, {"Range": f"bytes={start}-", "If-Range": etag} if etag and start else {})
    except urllib.error.HTTPError as error:
        if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            raise
        part.drop()
        raise DamagedError(f"{file.url} is not as long as what arrived of it") from error
    with response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        counter.set(start)
        length = response.headers.get("Content-Length")
        expected = file.size if file.size is not None else (start + int(length) if length else None)
        md5 = file.md5 or _md5_of(response.headers.get_all("x-goog-hash") or [])
        counter.bar.total = counter.bar.total if counter.bar.total is not None else expected
        with part.content.open("r+b" if start else "wb") as output:
            part.keep(response, expected, md5)  # after what is of another content is gone
            output.seek(start)
            while not stop.is_set() and (block := response.read(BLOCK)):
                output.write(block)
                counter.set(output.tell())
            received = output.tell()
    if stop.is_set() or (expected is not None and received < expected):
        if not part.note.is_file():
            part.drop()
        raise ConnectionError(f"{file.url} broke off after {received} of {expected} bytes")
    if (expected is not None and received > expected) or (md5 is not None and disk.md5(part.content) != md5):
        part.drop()
        raise DamagedError(f"{file.url} arrived damaged: its MD5 or its size differs from the server's")


def _md5_of(headers: list[str]) -> str | None:
    hashes = [value.strip() for header in headers for value in header.split(",")]
    return next((value.removeprefix("md5=") for value in hashes if value.startswith("md5=")), None)
