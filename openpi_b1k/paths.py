"""Where files are: an address in, a local path out, downloaded once into the cache.

A download goes to a temporary name beside its place, is checked, then renamed; a lock makes other processes wait.
What is at its place is therefore complete, and is never downloaded again.
"""

import base64
import concurrent.futures
import contextlib
import dataclasses
import fcntl
import hashlib
import http.client
import json
import os
import pathlib
import shutil
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator

import tqdm

GCS_HOST = "https://storage.googleapis.com"
SHIPPED = pathlib.Path(__file__).parent / "transforms"
_SCHEMES = "a local path, gs://, hf://, s3://, https:// or package:NAME"
_ATTEMPTS = 3
_TIMEOUT_S = 60
_BLOCK = 1 << 20


def cache_dir() -> pathlib.Path:
    """Returns the directory of downloads and generated data: $OPENPI_B1K_CACHE, else ~/.cache/openpi_b1k."""
    return pathlib.Path(os.environ.get("OPENPI_B1K_CACHE") or "~/.cache/openpi_b1k").expanduser()


def default_data_root(generation: str) -> pathlib.Path:
    """Returns where a generation's demonstrations are looked for: $OPENPI_B1K_DATA, else a folder of datasets/."""
    return pathlib.Path(os.environ.get("OPENPI_B1K_DATA") or f"datasets/{generation}-challenge-demos").expanduser()


def data_root(root: str | None, generation: str) -> pathlib.Path:
    """Returns the directory of a generation's demonstrations: `root`, or where they are looked for without it.

    Raises:
        FileNotFoundError: it is not there; the message shows how to download it.
    """
    path = pathlib.Path(root).expanduser() if root else default_data_root(generation)
    if not path.is_dir():
        raise FileNotFoundError(
            f"no demonstrations at {path}; download them with `uv run scripts/download_dataset.py --generation "
            f"{generation} --root {path}`, or say where they are with --data.root or $OPENPI_B1K_DATA"
        )
    return path


def fetch(address: str, *, gcs_host: str = GCS_HOST) -> pathlib.Path:
    """Returns the local path of a file or directory, downloading it into the cache if it is not there yet.

    Args:
        address: a local path, gs:// (public buckets anonymously), hf://[datasets/]ORG/NAME[@REVISION][/PATH], s3://,
            https:// (a file), or package:NAME for a file shipped in this package.
        gcs_host: the server asked for gs:// addresses.

    Raises:
        FileNotFoundError: there is nothing at the address.
        ConnectionError: it could not be downloaded; tells where it may be put by hand.
        ValueError: the address is of no known kind.
        ImportError: it needs credentials, and the package that knows them is not installed.
    """
    if address.startswith("package:"):
        return _shipped(address.removeprefix("package:"))
    scheme, separator, rest = address.partition("://")
    if not separator:
        path = pathlib.Path(address).expanduser()
        if not path.exists():
            raise FileNotFoundError(f"nothing at {path} (in {pathlib.Path.cwd()}); an address is {_SCHEMES}")
        return path
    downloads: dict[str, Callable[[pathlib.Path], None]] = {
        "gs": lambda target: _download_gcs(rest, target, gcs_host),
        "hf": lambda target: _download_hf(rest, target),
        "s3": lambda target: _download_fsspec(address, target),
        "https": lambda target: _download_file(RemoteFile(address), target),
        "http": lambda target: _download_file(RemoteFile(address), target),
    }
    if scheme not in downloads:
        raise ValueError(f"cannot fetch {address!r}; an address is {_SCHEMES}")
    return _cached(address, cache_path(address), downloads[scheme])


def cache_path(address: str) -> pathlib.Path:
    """Returns the place of an address in the cache: gs://bucket/a/b lies at gs/bucket+a+b."""
    scheme, _, rest = address.partition("://")
    return cache_dir() / scheme / urllib.parse.quote(rest.strip("/"), safe="@=").replace("%2F", "+")


def _shipped(name: str) -> pathlib.Path:
    files = sorted(path.name for path in SHIPPED.glob("*.model"))
    if name not in files:
        raise FileNotFoundError(f"no file {name!r} in the package; there are: {', '.join(files)}")
    return SHIPPED / name


def _cached(address: str, target: pathlib.Path, download: Callable[[pathlib.Path], None]) -> pathlib.Path:
    """Returns `target`, which `download` fills first unless it exists; one process at a time."""
    if target.exists():
        return target
    with locked(target.parent / f"{target.name}.lock"):
        if target.exists():
            return target
        try:
            download(partial := target.parent / f"{target.name}.partial")
        except FileNotFoundError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"could not download {address}: {error}. Without a network, put it at {target} by hand, "
                "or set OPENPI_B1K_CACHE to a cache that holds it"
            ) from error
        partial.rename(target)
    return target


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time go on, of those that name the same lock file; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also when the process dies
        yield


@dataclasses.dataclass(frozen=True)
class RemoteFile:
    """A file on an HTTP server, with what is known about it."""

    url: str
    path: str = ""
    """Where it lies in the directory it belongs to."""
    size: int | None = None
    md5: str | None = None
    """Base64, as Google Cloud Storage gives it."""


def _open(url: str) -> http.client.HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "openpi_b1k", "Accept-Encoding": "identity"})
    try:
        return urllib.request.urlopen(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == http.HTTPStatus.NOT_FOUND:
            raise FileNotFoundError(f"nothing at {url}") from error
        raise


def _download_file(file: RemoteFile, target: pathlib.Path, bar: tqdm.tqdm | None = None) -> None:
    """Downloads one file; nothing is left at `target` unless it is whole."""
    own_bar = bar is None
    bar = bar if bar is not None else _progress(target.name.removesuffix(".partial"), file.size)
    target.parent.mkdir(parents=True, exist_ok=True)
    temporary = target.parent / f"{target.name}.download"
    try:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                _download_once(file, temporary, bar)
                break
            except (FileNotFoundError, urllib.error.HTTPError):
                raise
            except (OSError, http.client.HTTPException):
                if attempt == _ATTEMPTS:
                    raise
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)
        if own_bar:
            bar.close()


def _download_once(file: RemoteFile, target: pathlib.Path, bar: tqdm.tqdm) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    received = 0
    with _open(file.url) as response, target.open("wb") as output:
        length = response.headers.get("Content-Length")
        expected = file.size if file.size is not None else (int(length) if length else None)
        if bar.total is None:
            bar.total = expected
        while block := response.read(_BLOCK):
            output.write(block)
            digest.update(block)
            received += len(block)
            bar.update(len(block))
        md5 = file.md5 or _md5_of(response.headers.get_all("x-goog-hash") or [])
    is_whole = expected is None or received == expected
    if is_whole and (md5 is None or base64.b64encode(digest.digest()).decode() == md5):
        return
    bar.update(-received)
    if not is_whole:
        raise ConnectionError(f"{file.url} broke off after {received} of {expected} bytes")
    raise ConnectionError(f"{file.url} arrived damaged: its MD5 differs from the server's")


def _md5_of(headers: list[str]) -> str | None:
    hashes = [value.strip() for header in headers for value in header.split(",")]
    return next((value.removeprefix("md5=") for value in hashes if value.startswith("md5=")), None)


def _download_gcs(rest: str, target: pathlib.Path, host: str) -> None:
    bucket, _, name = rest.rstrip("/").partition("/")
    try:
        files = _list_gcs(bucket, name, host) if name else []
    except urllib.error.HTTPError as error:
        if error.code not in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
            raise
        _download_fsspec(f"gs://{rest}", target)  # a private bucket
        return
    if not files:
        raise FileNotFoundError(f"nothing at gs://{rest}")
    _download_files(files, target)


def _list_gcs(bucket: str, name: str, host: str) -> list[RemoteFile]:
    """Returns the object `name`, with an empty path, or else the objects in the directory `name`."""
    files, page = [], ""
    while True:
        query = urllib.parse.urlencode({"prefix": name, "pageToken": page} if page else {"prefix": name})
        with _open(f"{host}/storage/v1/b/{bucket}/o?{query}") as response:
            listing = json.load(response)
        for item in listing.get("items", []):
            path = item["name"].removeprefix(name)
            url = f"{host}/{bucket}/{urllib.parse.quote(item['name'])}"
            file = RemoteFile(url, path.removeprefix("/"), int(item["size"]), item.get("md5Hash"))
            if not path:
                return [file]
            if path.startswith("/") and not path.endswith("/"):  # not a sibling that starts alike, not a marker
                files.append(file)
        page = listing.get("nextPageToken")
        if not page:
            return files


def _download_files(files: list[RemoteFile], target: pathlib.Path) -> None:
    """Downloads one object to `target`, or those of a directory below it; files that arrived before are kept."""
    with _progress(target.name.removesuffix(".partial"), sum(file.size or 0 for file in files)) as bar:
        missing = [file for file in files if not (file.path and (target / file.path).is_file())]
        bar.update(sum(file.size or 0 for file in set(files) - set(missing)))
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda file: _download_file(file, target / file.path, bar), missing))


def _download_hf(rest: str, target: pathlib.Path) -> None:
    import huggingface_hub  # noqa: PLC0415  # slow to import, seldom needed
    from huggingface_hub import errors  # noqa: PLC0415

    is_dataset = rest.startswith("datasets/")
    organisation, name, *parts = f"{rest.removeprefix('datasets/').strip('/')}/".split("/")
    name, _, revision = name.partition("@")
    if not name:
        raise ValueError(f"hf://{rest} names no repository; it must be hf://[datasets/]ORG/NAME[@REVISION][/PATH]")
    path = "/".join(parts).strip("/")
    folder = target.parent / f"{target.name}.hf"
    repository, kind = f"{organisation}/{name}", "dataset" if is_dataset else "model"
    try:
        info = huggingface_hub.HfApi().repo_info(repository, repo_type=kind, revision=revision or None)
        files = [file.rfilename for file in info.siblings or []]
        files = [file for file in files if not path or file == path or file.startswith(f"{path}/")]
        if files:
            huggingface_hub.snapshot_download(
                repository, repo_type=kind, revision=info.sha, allow_patterns=files, local_dir=folder
            )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise FileNotFoundError(f"nothing at hf://{rest}: {error}") from error
    except errors.LocalEntryNotFoundError as error:
        raise ConnectionError(str(error)) from error
    if not files:
        raise FileNotFoundError(f"nothing at hf://{rest}: the repository has no {path}")
    absent = [file for file in files if not (folder / file).is_file()]
    if absent:  # without a network, snapshot_download is content with what is there
        raise ConnectionError(f"{len(absent)} of {len(files)} files did not arrive")
    shutil.rmtree(folder / ".cache", ignore_errors=True)
    (folder / path).rename(target)
    shutil.rmtree(folder, ignore_errors=True)


def _download_fsspec(address: str, target: pathlib.Path) -> None:
    import fsspec  # noqa: PLC0415  # slow to import, seldom needed

    try:
        filesystem, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        extra = {"gs": "--extra gcs", "s3": "--with s3fs"}.get(address.partition("://")[0], "")
        raise ImportError(f"{address} needs credentials and another package: run with `uv run {extra}`") from error
    if not filesystem.exists(path):
        raise FileNotFoundError(f"nothing at {address}")
    shutil.rmtree(target, ignore_errors=True)
    filesystem.get(path, str(target), recursive=filesystem.isdir(path))


def _progress(name: str, size: int | None) -> tqdm.tqdm:
    return tqdm.tqdm(desc=name, total=size, unit="B", unit_scale=True, disable=None)
