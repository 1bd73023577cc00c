"""This machine's side of a download: room, names that stay inside their directory, locks, MD5 sums."""

import base64
import contextlib
import errno
import fcntl
import hashlib
import pathlib
import shutil
from collections.abc import Iterator, Set

FULL = {errno.ENOSPC, errno.EDQUOT}
_TO_BLAME = FULL | {
    errno.EACCES, errno.EEXIST, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOTDIR,
    errno.ENOTEMPTY, errno.EPERM, errno.EROFS,
}  # fmt: skip


def is_to_blame(error: Exception) -> bool:
    """Returns whether it was a disk, not a server or the network, that an attempt failed of."""
    return isinstance(error, OSError) and error.errno in _TO_BLAME


def require_room(directory: pathlib.Path, num_bytes: int) -> None:
    """Makes sure that so many bytes fit where `directory` is, or will be.

    Raises:
        OSError: they do not.
    """
    existing = next(folder for folder in (directory, *directory.absolute().parents) if folder.is_dir())
    free = shutil.disk_usage(existing).free
    if num_bytes > free:
        raise OSError(errno.ENOSPC, f"{num_bytes / 1e9:.2f} GB more do not fit in {existing}: {free / 1e9:.2f} GB free")


def is_below(path: str) -> bool:
    """Returns whether a name with slashes stays inside the directory it is put into, and is the only way to say so."""
    return all(part not in {"", ".", ".."} for part in path.split("/")) and "\0" not in path


def keep_only(path: pathlib.Path, files: Set[pathlib.Path]) -> None:
    """Deletes the file `path`, or what is in the directory, except `files`."""
    for found in sorted([path, *path.rglob("*")], reverse=True):  # what is in a directory comes before it
        if not found.is_dir() or found.is_symlink():
            if found not in files:
                found.unlink(missing_ok=True)
        elif not any(found.iterdir()):
            found.rmdir()


def delete(path: pathlib.Path) -> None:
    """Deletes a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def md5(path: pathlib.Path) -> str:
    """Returns a file's MD5 in base64, as Google Cloud Storage gives it."""
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, lambda: hashlib.md5(usedforsecurity=False)).digest()
    return base64.b64encode(digest).decode()


@contextlib.contextmanager
def locked(path: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time go on, of those that name the same lock file; its directory is made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # released when the file is closed, also when the process dies
        yield
