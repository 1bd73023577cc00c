"""One function per kind of server: an address to a file or a directory on this disk."""

import http
import json
import pathlib
import urllib.error
import urllib.parse

from openpi_b1k.downloads import disk
from openpi_b1k.downloads.http import RemoteFile, download, read

GCS_HOST = "https://storage.googleapis.com"
Checksums = dict[str, str]
"""Path below the address -> SHA-256 in hexadecimal digits, as far as the server told them."""


def from_http(address: str, target: pathlib.Path) -> Checksums:
    """Downloads one file."""
    download([RemoteFile(address)], target)
    return {}


def from_gcs(rest: str, target: pathlib.Path, host: str = GCS_HOST) -> Checksums:
    """Downloads gs://`rest`, an object or all objects of a directory, without credentials where that is possible.

    Raises:
        FileNotFoundError: there is nothing.
        ValueError: a name in the bucket leads out of the directory.
        ImportError: the bucket is not public, and gcsfs is not installed.
        OSError: it did not arrive.
    """
    bucket, _, name = rest.rstrip("/").partition("/")
    try:
        files = _list_gcs(bucket, name, host) if name else []
    except FileNotFoundError as error:
        raise FileNotFoundError(f"nothing at gs://{rest}: there is no bucket {bucket!r}") from error
    except urllib.error.HTTPError as error:
        if error.code not in {http.HTTPStatus.UNAUTHORIZED, http.HTTPStatus.FORBIDDEN}:
            raise
        return from_fsspec(f"gs://{rest}", target)  # a private bucket
    if not files:
        raise FileNotFoundError(f"nothing at gs://{rest}")
    download(files, target)
    return {}


def _list_gcs(bucket: str, name: str, host: str) -> list[RemoteFile]:
    """Returns the object `name`, with an empty path, or else the objects in the directory `name`."""
    files, page = [], ""
    while True:
        query = urllib.parse.urlencode({"prefix": name, "pageToken": page} if page else {"prefix": name})
        listing = json.loads(read(f"{host}/storage/v1/b/{urllib.parse.quote(bucket, safe='')}/o?{query}"))
        for item in listing.get("items", []):
            path = item["name"].removeprefix(name)
            url = f"{host}/{bucket}/{urllib.parse.quote(item['name'])}"
            file = RemoteFile(url, path.removeprefix("/"), int(item["size"]), item.get("md5Hash"))
            if not path:
                return [file]
            if path.startswith("/") and not path.endswith("/"):  # not a sibling that starts alike, not a marker
                _refuse_to_leave(file.path, f"gs://{bucket}/{name}")
                files.append(file)
        page = listing.get("nextPageToken")
        if not page:
            return files


def _refuse_to_leave(path: str, address: str) -> None:
    if not disk.is_below(path):
        raise ValueError(f"{address} lists {path!r}, which is no name of a file inside a directory; nothing is fetched")


def from_hub(rest: str, target: pathlib.Path) -> Checksums:
    """Downloads hf://`rest`, a repository or a part of it; huggingface_hub resumes and draws the bars.

    Raises:
        ValueError: the address names no repository.
        FileNotFoundError: there is nothing.
        OSError: it did not arrive.
    """
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
    if target.exists():  # whole, but it was not recorded: its large files are kept if they are right
        disk.delete(folder)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        target.rename(folder / path)
    try:
        info = huggingface_hub.HfApi().repo_info(
            repository, repo_type=kind, revision=revision or None, files_metadata=True
        )
        files = [file for file in info.siblings or [] if _is_within(file.rfilename, path)]
        names = [file.rfilename for file in files]
        for file in names:
            _refuse_to_leave(file, f"hf://{rest}")
        if names:
            arrived = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
            disk.require_room(target.parent, sum(file.size or 0 for file in files) - arrived)
            huggingface_hub.snapshot_download(
                repository, repo_type=kind, revision=info.sha, allow_patterns=names, local_dir=folder
            )
    except (errors.RepositoryNotFoundError, errors.RevisionNotFoundError) as error:
        raise FileNotFoundError(f"nothing at hf://{rest}: {error}") from error
    except errors.LocalEntryNotFoundError as error:
        raise ConnectionError(str(error)) from error
    if not names:
        raise FileNotFoundError(f"nothing at hf://{rest}: the repository has no {path}")
    absent = [file for file in names if not (folder / file).is_file()]
    if absent:  # without a network, snapshot_download is content with what is there
        raise ConnectionError(f"{len(absent)} of {len(names)} files did not arrive")
    disk.keep_only(folder, {folder / file for file in names})
    (folder / path).rename(target)
    disk.delete(folder)
    return {file.rfilename.removeprefix(path).strip("/"): file.lfs.sha256 for file in files if file.lfs}


def _is_within(file: str, path: str) -> bool:
    return not path or file == path or file.startswith(f"{path}/")


def from_fsspec(address: str, target: pathlib.Path) -> Checksums:
    """Downloads from wherever fsspec finds an implementation and credentials.

    Raises:
        ImportError: the implementation is not installed.
        FileNotFoundError: there is nothing.
        ValueError: a name on the server leads out of the directory.
        OSError: it did not arrive.
    """
    import fsspec  # noqa: PLC0415  # slow to import, seldom needed

    try:
        filesystem, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        extra = {"gs": "--extra gcs", "s3": "--with s3fs"}.get(address.partition("://")[0], "")
        raise ImportError(f"{address} needs credentials and another package: run with `uv run {extra}`") from error
    if not filesystem.exists(path):
        raise FileNotFoundError(f"nothing at {address}")
    is_directory = filesystem.isdir(path)
    for name in filesystem.find(path) if is_directory else ():
        if not name.endswith("/"):  # a marker
            _refuse_to_leave(name.removeprefix(path.rstrip("/")).removeprefix("/"), address)
    disk.delete(target)
    filesystem.get(path, str(target), recursive=is_directory)
    return {}
