"""Where files are: an address in, a local path out, downloaded once into the cache.

A download goes to a temporary name beside its place, is checked, then renamed; a lock makes other processes wait.
What is at its place is therefore complete, and is never downloaded again. Beside it lies a record of its files, by
which it can be checked and moved to another machine (`downloads/`).
"""

import http.client
import os
import pathlib
import re
import urllib.parse
from collections.abc import Callable

from openpi_b1k.downloads import disk, record, remote
from openpi_b1k.downloads.disk import locked
from openpi_b1k.downloads.http import drop_parts
from openpi_b1k.downloads.remote import GCS_HOST

SHIPPED = pathlib.Path(__file__).parent / "transforms"
_HUB_PAGE = re.compile(
    r"https?://(huggingface\.co|hf\.co)/(?P<name>(datasets/)?[^/]+/[^/]+)/(blob|tree)/(?P<revision>[^/?]+)(?P<path>/[^?]*)?(\?.*)?"
)
_SCHEMES = "a local path, gs://, hf://, s3://, https:// or package:NAME"


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
        OSError: there is no room for it.
        ValueError: the address is of no known kind, or names nothing that could be fetched.
        ImportError: it needs credentials, and the package that knows them is not installed.
    """
    if address.startswith("package:"):
        return _shipped(address.removeprefix("package:"))
    scheme, separator, rest = address.partition("://")
    if not separator:
        path = pathlib.Path(address).expanduser()
        if not path.exists():
            kind, colon, rest = address.partition(":")
            if colon and kind in record.SCHEMES:
                raise ValueError(f"cannot fetch {address!r}; did you mean {kind}://{rest.lstrip('/')}?")
            raise FileNotFoundError(f"nothing at {path} (in {pathlib.Path.cwd()}); an address is {_SCHEMES}")
        return path
    downloads: dict[str, Callable[[pathlib.Path], remote.Checksums]] = {
        "gs": lambda target: remote.from_gcs(rest, target, gcs_host),
        "hf": lambda target: remote.from_hub(rest, target),
        "s3": lambda target: remote.from_fsspec(address, target),
        "https": lambda target: remote.from_http(address, target),
        "http": lambda target: remote.from_http(address, target),
    }
    if scheme not in downloads:
        raise ValueError(f"cannot fetch {address!r}; an address is {_SCHEMES}")
    page = _HUB_PAGE.fullmatch(address)
    if page:
        revision = "" if page["revision"] == "main" else f"@{page['revision']}"
        raise ValueError(f"{address} is a page, not a file; use hf://{page['name']}{revision}{page['path'] or ''}")
    return _cached(address, cache_path(address), downloads[scheme])


def cache_path(address: str) -> pathlib.Path:
    """Returns the place of an address in the cache: gs://bucket/a/b lies at gs/bucket+a+b.

    Raises:
        ValueError: the address names nothing, or goes up.
    """
    scheme, _, rest = address.partition("://")
    rest = rest.strip("/")
    if not rest or {".", ".."} & set(rest.split("/")):
        raise ValueError(f"{address!r} names nothing that could be fetched; an address is {_SCHEMES}")
    name = urllib.parse.quote(rest, safe="@=").replace("%2F", "+")
    beside = next((end for end in record.BESIDE if name.endswith(end)), "")
    if beside:  # records, locks and the like have such names
        name = name.removesuffix(beside) + beside.replace(".", "%2E")
    return cache_dir() / scheme / name


def _shipped(name: str) -> pathlib.Path:
    files = sorted(path.name for path in SHIPPED.glob("*.model"))
    if name not in files:
        raise FileNotFoundError(f"no file {name!r} in the package; there are: {', '.join(files)}")
    return SHIPPED / name


def _cached(address: str, target: pathlib.Path, download: Callable[[pathlib.Path], remote.Checksums]) -> pathlib.Path:
    """Returns `target`, which `download` fills first unless it exists; one process at a time."""
    if target.exists():
        return target
    with locked(record.lock_file(target)):
        if target.exists():
            return target
        partial = target.parent / f"{target.name}.partial"
        try:
            checksums = download(partial)
            arrived = record.make(address, partial)
            differing = record.differing(arrived, checksums)
            if differing:
                disk.delete(partial)
                raise ConnectionError(f"{len(differing)} files arrived damaged, such as {differing[0]!r}")
        except FileNotFoundError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise _explained(error, address, target) from error
        if not arrived.files:
            disk.delete(partial)
            raise FileNotFoundError(f"nothing at {address}: it is a directory without files")
        record.record_file(target).write_text(arrived.to_json())
        partial.rename(target)
        drop_parts(partial)
    return target


def _explained(error: Exception, address: str, target: pathlib.Path) -> OSError:
    """Returns an error that says what to do about a download that failed."""
    kept = f"could not download {address}: {error}. What arrived is kept, so the same command goes on from there. "
    if isinstance(error, OSError) and disk.is_to_blame(error):
        return OSError(
            error.errno, f"{kept}Make room for {target} and see that it may be written, or set OPENPI_B1K_CACHE"
        )
    return ConnectionError(
        f"{kept}Without a network here, run `uv run scripts/fetch_weights.py {address} --export weights.tar` on a "
        "machine that has one and `uv run scripts/fetch_weights.py --import weights.tar` here; or put it at "
        f"{target} by hand, or set OPENPI_B1K_CACHE to a cache that holds it"
    )
