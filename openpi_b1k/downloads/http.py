"""Files from HTTP servers: resumed where they broke off, checked, several at once.

A file arrives under `<name>.download`, beside it the server's ETag of what arrives. A later attempt, also one of
another process, asks for the rest of just that; a server that has something else by now, or cannot continue, starts
again.
"""

import base64
import concurrent.futures
import dataclasses
import hashlib
import http.client
import pathlib
import threading
import urllib.error
import urllib.request

import tqdm

ATTEMPTS = 4
PAUSE_S = 2.0
"""Before the second attempt; doubled before each one after that."""
AT_ONCE = 8
TIMEOUT_S = 60
BLOCK = 1 << 20


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


def download(files: list[RemoteFile], target: pathlib.Path) -> None:
    """Downloads one file to `target`, or those of a directory below it; what arrived before is kept.

    When it is interrupted or fails, what has arrived stays, and the next call goes on with it.

    Raises:
        FileNotFoundError: a file is not on the server any more.
        OSError: a file did not arrive, after several attempts.
    """
    missing = [file for file in files if not (file.path and (target / file.path).is_file())]
    sizes = [file.size for file in files]
    total = None if None in sizes else sum(size or 0 for size in sizes)
    stop = threading.Event()
    with (
        progress(target.name.removesuffix(".partial"), total) as bar,
        concurrent.futures.ThreadPoolExecutor(AT_ONCE) as pool,
    ):
        bar.update(sum(file.size or 0 for file in set(files) - set(missing)))
        running = [pool.submit(_attempt, file, target / file.path, bar, stop) for file in missing]
        try:
            for future in concurrent.futures.as_completed(running):
                future.result()
        except BaseException:  # also Ctrl-C: the other files stop where they are
            stop.set()
            pool.shutdown(wait=True, cancel_futures=True)
            raise


def progress(name: str, size: int | None) -> tqdm.tqdm:
    """Returns a bar that counts bytes; none is drawn where nobody looks."""
    return tqdm.tqdm(desc=name, total=size, unit="B", unit_scale=True, disable=None)


def _attempt(file: RemoteFile, target: pathlib.Path, bar: tqdm.tqdm, stop: threading.Event) -> None:
    """Downloads one file, in several attempts if need be; nothing is at `target` before it is whole."""
    target.parent.mkdir(parents=True, exist_ok=True)
    arriving = target.parent / f"{target.name}.download"
    for attempt in range(ATTEMPTS):
        before = bar.n
        try:
            _receive(file, arriving, bar, stop)
            break
        except (FileNotFoundError, urllib.error.HTTPError):
            raise
        except (OSError, http.client.HTTPException) as error:
            if attempt == ATTEMPTS - 1 or stop.is_set():
                raise
            if isinstance(error, DamagedError) or not _etag_file(arriving).is_file():
                bar.update(before - bar.n)  # it starts again
            stop.wait(PAUSE_S * 2**attempt)
    arriving.rename(target)
    _etag_file(arriving).unlink(missing_ok=True)


def _receive(file: RemoteFile, arriving: pathlib.Path, bar: tqdm.tqdm, stop: threading.Event) -> None:
    """Receives what is missing of one file, and checks it."""
    etag_file = _etag_file(arriving)
    etag = etag_file.read_text() if etag_file.is_file() and arriving.is_file() else ""
    start = arriving.stat().st_size if etag else 0
    wanted = {"Range": f"bytes={start}-", "If-Range": etag} if start else {}
    with open_url(file.url, wanted) as response:
        if response.status != http.HTTPStatus.PARTIAL_CONTENT:
            start = 0
        digest = hashlib.md5(usedforsecurity=False)
        with arriving.open("r+b" if start else "wb") as output:
            while output.tell() < start and (block := output.read(BLOCK)):
                digest.update(block)
            length = response.headers.get("Content-Length")
            expected = file.size if file.size is not None else (start + int(length) if length else None)
            bar.total = bar.total if bar.total is not None else expected
            _keep_etag(response, etag_file)
            while not stop.is_set() and (block := response.read(BLOCK)):
                output.write(block)
                digest.update(block)
                bar.update(len(block))
            received = output.tell()
        md5 = file.md5 or _md5_of(response.headers.get_all("x-goog-hash") or [])
    if expected is not None and received < expected:
        if not etag_file.is_file():
            arriving.unlink()
        raise ConnectionError(f"{file.url} broke off after {received} of {expected} bytes")
    if (expected is not None and received > expected) or (
        md5 is not None and base64.b64encode(digest.digest()).decode() != md5
    ):
        arriving.unlink()
        etag_file.unlink(missing_ok=True)
        raise DamagedError(f"{file.url} arrived damaged: its MD5 or its size differs from the server's")


def _keep_etag(response: http.client.HTTPResponse, etag_file: pathlib.Path) -> None:
    """Remembers what is arriving, if the server says it in a way that tells one content from another."""
    etag = response.headers.get("ETag", "")
    if etag.startswith('"'):
        etag_file.write_text(etag)
    else:  # weak ones, W/"...", may be the same for other bytes
        etag_file.unlink(missing_ok=True)


def _etag_file(arriving: pathlib.Path) -> pathlib.Path:
    return arriving.parent / f"{arriving.name}.etag"


def _md5_of(headers: list[str]) -> str | None:
    hashes = [value.strip() for header in headers for value in header.split(",")]
    return next((value.removeprefix("md5=") for value in hashes if value.startswith("md5=")), None)
