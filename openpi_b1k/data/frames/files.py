"""Open files, as many as the system allows and no more."""

import collections
import errno
import os
import pathlib
import resource
import threading

MOST_OPEN = 2048
"""Files kept open by one process; those read longest ago are closed first."""
SPARE = 512
"""Files left to the rest of the process."""


class OpenFile:
    """A file open for reading at any place, by any thread. Closed when nobody holds it."""

    def __init__(self, path: pathlib.Path) -> None:
        """Opens the file.

        Raises:
            FileNotFoundError: there is none.
        """
        self.path = path
        self._number = None
        try:
            self._number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise FileNotFoundError(f"no video {path}; download it, or choose other tasks with --data.tasks") from error

    def read(self, offset: int, size: int) -> bytes:
        """Returns `size` bytes from `offset` on; fewer where the file ends.

        Raises:
            OSError: the file cannot be read; the message names it.
        """
        if self._number is None:
            raise OSError(errno.EBADF, "not open", str(self.path))
        try:
            return os.pread(self._number, size, offset)
        except OSError as error:
            raise OSError(error.errno, error.strerror, str(self.path)) from error

    def __del__(self) -> None:
        """Closes the file."""
        if self._number is not None:
            os.close(self._number)
            self._number = None


class OpenFiles:
    """Files by path, each opened once. Threads may share one."""

    def __init__(self, most: int = MOST_OPEN) -> None:
        """Opens nothing yet; keeps at most `most` open, fewer where the system allows fewer."""
        self._most = max(16, min(most, allowed_files() - SPARE))
        self._files: collections.OrderedDict[pathlib.Path, OpenFile] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, path: pathlib.Path) -> OpenFile:
        """Returns the open file.

        Raises:
            FileNotFoundError: there is none.
        """
        with self._lock:
            if path in self._files:
                self._files.move_to_end(path)
                return self._files[path]
        file = OpenFile(path)
        with self._lock:
            file = self._files.setdefault(path, file)
            while len(self._files) > self._most:
                self._files.popitem(last=False)
        return file


def allowed_files() -> int:
    """Returns how many files this process may have open, raised before to what it may ask for."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = MOST_OPEN + SPARE
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    raised = wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)
    resource.setrlimit(resource.RLIMIT_NOFILE, (raised, hard))
    return raised
