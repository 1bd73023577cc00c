"""Downloads in one tar file, for machines that reach no server.

The first member lists the downloads. Each of them is its record, then its files, under the names they have in a cache.
"""

import io
import json
import pathlib
import shutil
import tarfile
from collections.abc import Iterable, Iterator

import tqdm

from openpi_b1k.downloads import disk
from openpi_b1k.downloads.http import progress
from openpi_b1k.downloads.record import (
    BESIDE,
    SCHEMES,
    SUFFIX,
    Entry,
    Record,
    lock_file,
    problems,
    read,
    record_file,
)

CONTENTS = "contents.json"
BLOCK = 1 << 20


def export(entries: Iterable[Entry], cache: pathlib.Path, target: pathlib.Path) -> None:
    """Writes downloads into a tar file, which appears when it is whole.

    Raises:
        FileExistsError: `target` exists.
        ValueError: a download has no record, or is not what its record says.
        OSError: there is no room for it.
    """
    entries = list(entries)
    if target.exists():
        raise FileExistsError(f"{target} exists; give another name, or delete it first")
    for entry in entries:
        if entry.record is None:
            raise ValueError(f"{entry.path} has no record of what arrived; delete it and download it again")
        found = next(problems(entry.path, entry.record), None)
        if found:
            raise ValueError(f"{found}; delete {entry.path} and download it again")
    partial = target.parent / f"{target.name}.partial"
    total = sum(entry.record.num_bytes for entry in entries if entry.record)
    disk.require_room(target.parent, total)
    places = [entry.path.relative_to(cache).as_posix() for entry in entries]
    try:
        with progress(target.name, total) as bar, tarfile.open(partial, "w", format=tarfile.PAX_FORMAT) as tar:
            _add_text(tar, CONTENTS, json.dumps(places))
            for entry in entries:
                _add(tar, entry, cache, bar)
        partial.rename(target)
    finally:
        partial.unlink(missing_ok=True)


def _add(tar: tarfile.TarFile, entry: Entry, cache: pathlib.Path, bar: tqdm.tqdm) -> None:
    place = entry.path.relative_to(cache).as_posix()
    record = entry.record
    if record is None:
        raise ValueError(f"{entry.path} has no record")
    _add_text(tar, f"{place}{SUFFIX}", record.to_json())
    for name, file in record.files.items():
        tar.add(entry.path / name if name else entry.path, f"{place}/{name}" if name else place, recursive=False)
        bar.update(file.size)


def _add_text(tar: tarfile.TarFile, name: str, text: str) -> None:
    header = tarfile.TarInfo(name)
    header.size = len(text.encode())
    tar.addfile(header, io.BytesIO(text.encode()))


def import_tar(source: pathlib.Path, cache: pathlib.Path) -> Iterator[tuple[str, str]]:
    """Yields (address, what became of it) for each download in a tar file that `export` wrote.

    A download is checked before it gets its place. One that is there already is left as it is, unless its own record
    says that it is damaged.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is not of `export`, is cut off, or a download is not what its record says; those before it are
            in their places.
        OSError: there is no room for a download.
    """
    if not source.is_file():
        raise FileNotFoundError(f"no {source}; make one with --export on a machine that has a network")
    try:
        with tarfile.open(source) as tar:
            members = iter(tar)
            for place in _places(tar, next(members, None)):
                with disk.locked(lock_file(cache / place)):
                    outcome = _import_entry(tar, members, cache, place)
                yield outcome
            surplus = next(members, None)
            if surplus is not None:
                raise ValueError(f"{source} is damaged: its list does not name {surplus.name!r}; copy it again")
    except tarfile.TarError as error:
        raise ValueError(f"{source} is no tar file, or is cut off: {error}; copy it again") from error


def _places(tar: tarfile.TarFile, member: tarfile.TarInfo | None) -> list[str]:
    """Returns the places in the cache of all downloads in the tar file, `member` being its first."""
    strange = ValueError(f"{tar.name} was not written by --export: it does not begin with a list of downloads")
    if member is None or member.name != CONTENTS:
        raise strange
    try:
        places = json.loads(_content(tar, member))
    except ValueError as error:
        raise strange from error
    if not isinstance(places, list):
        raise strange
    for place in places:
        scheme, _, name = str(place).partition("/")
        is_name = disk.is_below(name) and "/" not in name and not name.startswith(".") and not name.endswith(BESIDE)
        if scheme not in SCHEMES or not is_name:
            raise ValueError(f"{tar.name} was not written by --export: {place!r} is no place of a download")
    return places


def _import_entry(
    tar: tarfile.TarFile, members: Iterator[tarfile.TarInfo], cache: pathlib.Path, place: str
) -> tuple[str, str]:
    """Takes the next download out of the tar file; whoever calls holds its lock."""
    record = Record.from_json(_content(tar, _next(tar, members, f"{place}{SUFFIX}")))
    if not record.files:
        raise ValueError(f"{tar.name} is damaged: the record of {place} names no files; copy it again")
    target = cache / place
    was_there, is_kept = target.exists(), _is_to_be_kept(target)
    arriving = target.parent / f"{target.name}.importing.partial"
    disk.delete(arriving)
    if not is_kept:
        disk.require_room(cache, record.num_bytes)
    try:
        for path in record.files:
            if path and not disk.is_below(path):
                raise ValueError(f"{tar.name} was not written by --export: {path!r} is no name of a file")
            member = _next(tar, members, f"{place}/{path}" if path else place)
            if not is_kept:
                _extract(tar, member, arriving / "content" / path if path else arriving / "content")
        if is_kept:
            return record.address, f"kept what is at {target}"
        problem = next(problems(arriving / "content", record), None)
        if problem:
            raise ValueError(f"{tar.name} is damaged: {problem}; copy it again")
        (arriving / "record").write_text(record.to_json())
        if was_there:
            target.rename(arriving / "damaged")
        (arriving / "record").replace(record_file(target))
        (arriving / "content").rename(target)
    finally:
        shutil.rmtree(arriving, ignore_errors=True)
    return record.address, f"{'replaced what was damaged' if was_there else 'now'} at {target}"


def _is_to_be_kept(target: pathlib.Path) -> bool:
    """Returns whether a download is there that is not damaged, as far as its record tells; reads all of it."""
    record = read(target) if target.exists() else None
    return target.exists() and (record is None or next(problems(target, record), None) is None)


def _next(tar: tarfile.TarFile, members: Iterator[tarfile.TarInfo], name: str) -> tarfile.TarInfo:
    """Returns the next member, which must be the file `name`."""
    found = next(members, None)
    if found is None or found.name != name or not found.isfile():
        raise ValueError(
            f"{tar.name} is damaged or cut off: expected {name}, found {found and found.name}; copy it again"
        )
    return found


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"{tar.name} was not written by --export: {member.name!r} is no file")
    return file.read()


def _extract(tar: tarfile.TarFile, member: tarfile.TarInfo, target: pathlib.Path) -> None:
    file = tar.extractfile(member)
    if file is None:
        raise ValueError(f"{tar.name} was not written by --export: {member.name!r} is no file")
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("wb") as output:
        shutil.copyfileobj(file, output, BLOCK)
