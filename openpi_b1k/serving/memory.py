"""What the C library does with memory that is free again."""

import ctypes
import logging
import platform

logger = logging.getLogger(__name__)

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 2**30


def keep_freed_memory() -> bool:
    """Has this process keep up to 1 GiB that it has freed, and returns whether it can: glibc does, others are let be.

    A message of megabytes is copied three times on its way in, into memory that glibc would ask the system for and
    give back each time; the system's clearing of it takes longer than the copies. Source: mallopt(3).
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    set_option = ctypes.CDLL(None).mallopt
    kept = all(set_option(option, _KEPT_BYTES) for option in (_M_MMAP_THRESHOLD, _M_TRIM_THRESHOLD))
    logger.debug("freed memory is %s", "kept" if kept else "given back: mallopt refused")
    return kept
