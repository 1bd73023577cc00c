"""Parameters kept on disk while a conversion runs, so that single layers can be read of what is stored stacked."""

import pathlib
import shutil

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)  # NumPy's files know no such type: its bits are kept as integers
BITS = np.dtype(np.uint16)


class Scratch:
    """Arrays by name, float32 or bfloat16, in a directory of their own, which goes with `delete`.

    A checkpoint may hold all layers of a kernel as one compressed piece, 4.8 GB at full size, so that reading one layer
    of it means reading all. Written here once, a layer is read by itself.
    """

    def __init__(self, directory: pathlib.Path) -> None:
        """Makes the directory, which must not exist."""
        directory.mkdir()
        self._directory = directory

    def write(self, name: str, array: np.ndarray) -> None:
        """Keeps an array."""
        np.save(self._path(name), array.view(BITS) if array.dtype == BFLOAT16 else array)

    def read(self, name: str) -> np.ndarray:
        """Returns a memory map of an array: what is not looked at is not read.

        Raises:
            FileNotFoundError: there is none of that name.
        """
        array = np.load(self._path(name), mmap_mode="r")
        return array.view(BFLOAT16) if array.dtype == BITS else array

    def delete(self) -> None:
        """Deletes all of it."""
        shutil.rmtree(self._directory)

    def _path(self, name: str) -> pathlib.Path:
        return self._directory / f"{name.replace('/', '.')}.npy"
