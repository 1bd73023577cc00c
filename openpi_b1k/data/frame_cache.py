"""Frames by episode, camera and frame, decoded each time or kept in memory at the model's size."""

import threading

import numpy as np

from openpi_b1k.data.episodes import EpisodeIndex
from openpi_b1k.data.video import VideoFrames
from openpi_b1k.transforms.images import resize_with_pad


class EpisodeFrames:
    """The images of a data set. Threads may share one; pickling leaves its memory behind.

    With `cache_bytes`, the first frame asked of an episode decodes all of that camera's, resized as the pipeline would
    resize them, and later ones come from memory; the pipeline leaves an image of the right size as it is, so what it
    returns is the same to the bit. Nothing is evicted: once the memory is used up, other frames are decoded each time.
    """

    def __init__(self, index: EpisodeIndex, image_size: int, cache_bytes: int) -> None:
        """Decodes nothing yet.

        Args:
            index: where the frames are.
            image_size: height and width in pixels of what is kept.
            cache_bytes: memory for frames; 0 keeps none.
        """
        self._index = index
        self._image_size = image_size
        self._cache_bytes = cache_bytes
        self._kept: dict[tuple[int, int], np.ndarray] = {}
        self._used_bytes = 0
        self._lock = threading.Lock()
        self._decoding: dict[tuple[int, int], threading.Lock] = {}

    def __reduce__(self) -> tuple:
        """Returns how another process makes one of its own."""
        return EpisodeFrames, (self._index, self._image_size, self._cache_bytes)

    def image(self, row: int, camera: int, frame: int) -> np.ndarray:
        """Returns one frame, uint8 [h, w, 3]: at the stored size, or at the model's and read-only if it is kept.

        Args:
            row: of the episode in the index.
            camera: position in the index's videos.
            frame: in the episode, counted from 0.
        """
        kept = self._kept.get((row, camera))
        if kept is None and self._cache_bytes:
            kept = self._keep(row, camera)
        if kept is not None:
            return kept[frame]
        return self._video(row, camera).read([self._first(row, camera) + frame])[0]

    def _keep(self, row: int, camera: int) -> np.ndarray | None:
        """Returns all frames of the episode, or None if there is no memory left for them."""
        key = (row, camera)
        length, size = int(self._index.lengths[row]), self._image_size
        with self._lock:
            decoding = self._decoding.setdefault(key, threading.Lock())
        with decoding:
            if key in self._kept:
                return self._kept[key]
            with self._lock:
                if self._used_bytes + length * size * size * 3 > self._cache_bytes:
                    return None
                self._used_bytes += length * size * size * 3
            images = np.empty((length, size, size, 3), np.uint8)
            first = self._first(row, camera)
            for i, image in self._video(row, camera).each(range(first, first + length)):
                images[i] = resize_with_pad(image, size)
            images.flags.writeable = False
            self._kept[key] = images
            return images

    def _first(self, row: int, camera: int) -> int:
        return int(self._index.first_frames[row, camera])

    def _video(self, row: int, camera: int) -> VideoFrames:
        index, video = self._index, self._index.videos[camera]
        file = index.video_files[index.video_ids[row, camera]]
        return VideoFrames(index.root / file, index.fps, (video.height, video.width))
