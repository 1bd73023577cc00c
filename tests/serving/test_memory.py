import platform

import numpy as np
import pytest

from openpi_b1k.serving import memory


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other C libraries have no such setting")
def test_glibc_keeps_what_is_freed():
    assert memory.keep_freed_memory()
    assert np.ones(2**24).sum() == 2**24  # and memory is still to be had


def test_other_c_libraries_are_let_be(monkeypatch):
    monkeypatch.setattr(platform, "libc_ver", lambda: ("", ""))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("must not be asked"))
    assert not memory.keep_freed_memory()
