"""Where files are: an address in, a local path out, downloaded once into the cache.

A download goes to a temporary name beside its place, is checked, then renamed; a lock makes other processes wait.
What is at its place is therefore complete, and is never downloaded again. Beside it lies a record of its files, by
which it can be checked and moved to another machine (`downloads/`).
"""

import contextlib
import fcntl
import http.client
import os
import pathlib
import shutil
import urllib.parse
from collections.abc import Callable, Iterator

from openpi_b1k.downloads import record, remote
from openpi_b1k.downloads.remote import GCS_HOST

SHIPPED = pathlib.Path(__file__).parent / "transforms"
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
    downloads: dict[str, Callable[[pathlib.Path], remote.Checksums]] = {
        "gs": lambda target: remote.from_gcs(rest, target, gcs_host),
        "hf": lambda target: remote.from_hub(rest, target),
        "s3": lambda target: remote.from_fsspec(address, target),
        "https": lambda target: remote.from_http(address, target),
        "http": lambda target: remote.from_http(address, target),
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


def _cached(address: str, target: pathlib.Path, download: Callable[[pathlib.Path], remote.Checksums]) -> pathlib.Path:
    """Returns `target`, which `download` fills first unless it exists; one process at a time."""
    if target.exists():
        return target
    with locked(target.parent / f"{target.name}.lock"):
        if target.exists():
            return target
        try:
            checksums = download(partial := target.parent / f"{target.name}.partial")
            arrived = record.make(address, partial)
            differing = record.differing(arrived, checksums)
            if differing:
                _delete(partial)
                raise ConnectionError(f"{len(differing)} files arrived damaged, such as {differing[0]!r}")
        except FileNotFoundError:
            raise
        except (OSError, http.client.HTTPException) as error:
            raise ConnectionError(
                f"could not download {address}: {error}. What arrived is kept, so the same command goes on from there. "
                f"Without a network here, run `uv run scripts/fetch_weights.py {address} --export weights.tar` on a "
                "machine that has one and `uv run scripts/fetch_weights.py --import weights.tar` here; or put it at "
                f"{target} by hand, or set OPENPI_B1K_CACHE to a cache that holds it"
            ) from error
        record.record_file(target).write_text(arrived.to_json())
        partial.rename(target)
    return target


def _delete(path: pathlib.Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time go on, of those that name the same lock file; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also when the process dies
        yield
