"""How much memory a run has taken: of the devices from JAX, of the host from Linux's process table."""

import os
import pathlib

import jax

GB = 1e9


def device_memory_gb() -> float | None:
    """Returns the most that any local device has held at once since the process started, in GB; None on a CPU."""
    peaks = [(device.memory_stats() or {}).get("peak_bytes_in_use") for device in jax.local_devices()]
    known = [peak for peak in peaks if peak is not None]
    return max(known) / GB if known else None


def host_memory_gb(process: int | None = None, table: pathlib.Path = pathlib.Path("/proc")) -> float | None:
    """Returns the resident memory of a process and its descendants in GB, loader workers included.

    Pages that several of them share, batches and cached frames for instance, count once: the private part of each is
    added up, and the largest shared part comes on top. None where there is no process table, which is on macOS.

    Args:
        process: its number; default: this one.
        table: where Linux keeps the table.
    """
    process = os.getpid() if process is None else process
    sizes = [size for size in map(_resident_and_shared, _family(process, table)) if size is not None]
    if not sizes:
        return None
    return (sum(resident - shared for resident, shared in sizes) + max(shared for _, shared in sizes)) / GB


def _family(process: int, table: pathlib.Path) -> list[pathlib.Path]:
    """Returns the entries of a process and of all that descend from it."""
    children: dict[int, list[int]] = {}
    for entry in table.glob("[0-9]*"):
        text = _read(entry / "stat")
        if text:  # "<id> (<name, which may hold anything>) <state> <parent> ..."
            parent = int(text.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    family = [process]
    for member in family:  # grows while it is read
        family.extend(children.get(member, ()))
    return [table / str(member) for member in family]


def _resident_and_shared(entry: pathlib.Path) -> tuple[int, int] | None:
    """Returns two numbers of bytes, or None if the process has ended since."""
    pages = _read(entry / "statm").split()
    if not pages:
        return None
    return int(pages[1]) * _PAGE_BYTES, int(pages[2]) * _PAGE_BYTES


def _read(path: pathlib.Path) -> str:
    """Returns the file's text; nothing if the process has ended, or is another user's."""
    try:
        return path.read_text()
    except OSError:
        return ""


_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
