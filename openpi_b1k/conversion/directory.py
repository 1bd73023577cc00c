"""Output directories that appear as a whole or not at all."""

import contextlib
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping

GB = 1e9


def require_possible(output: pathlib.Path, num_bytes: int) -> None:
    """Checks, before any work, that a directory can be made.

    Args:
        output: must not exist; folders above it need not exist either.
        num_bytes: needed on its disk.

    Raises:
        FileExistsError: `output` exists.
        PermissionError: it cannot be made there.
        OSError: the disk has not enough room.
    """
    if output.exists() or output.is_symlink():
        raise FileExistsError(f"{output} exists; give another --output, or delete it first")
    parent = _existing_parent(output)
    if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
        raise PermissionError(f"cannot make {output}: {parent} is no directory that may be written to")
    free = shutil.disk_usage(parent).free
    if free < num_bytes:
        raise OSError(
            f"{output} needs {num_bytes / GB:.1f} GB on the disk while it is made, and {free / GB:.1f} GB are free; "
            "make room or give an --output on another disk"
        )


def _existing_parent(output: pathlib.Path) -> pathlib.Path:
    return next(parent for parent in output.absolute().parents if parent.exists())


@contextlib.contextmanager
def new_directory(output: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty directory beside `output` that gets its name when the block ends, and is deleted if it fails.

    Raises:
        FileExistsError: `output` has come to exist in the meantime.
        PermissionError: nothing can be made there.
    """
    output = output.absolute()
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        # On the same disk, so that taking the name is one step.
        temporary = pathlib.Path(tempfile.mkdtemp(prefix=f".{output.name}.", suffix=".converting", dir=output.parent))
    except OSError as error:
        raise PermissionError(f"cannot make {output}: {error}") from error
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())  # mkdtemp's directories are closed to others
        if output.exists():
            raise FileExistsError(f"{output} was made by someone else in the meantime; give another --output")
        temporary.rename(output)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)  # gone if it has got its name


def write_files(directory: pathlib.Path, files: Mapping[str, bytes]) -> None:
    """Writes {path inside the directory: content}, making folders as needed."""
    for name, content in files.items():
        path = directory / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _umask() -> int:
    current = os.umask(0o022)
    os.umask(current)
    return current
