"""Frames by episode and number: decoded one by one, in runs, or kept in memory at the model's size."""

import functools
import logging
import pathlib
import threading
from collections.abc import Callable, Sequence

import numpy as np

from openpi_b1k.data.frames.decoding import DecoderPool, Reader
from openpi_b1k.data.frames.pictures import Picture, Pictures
from openpi_b1k.data.frames.runs import READER_BYTES_PER_PIXEL, Window, WindowSize
from openpi_b1k.data.frames.segmentation import Instances
from openpi_b1k.data.frames.video import OpenVideos
from openpi_b1k.data.index.episodes import EpisodeIndex

logger = logging.getLogger(__name__)


class EpisodeFrames:
    """The frames of a data set. Threads may share one; pickling leaves its memory and open files behind.

    Files stay open, and their sample tables in memory, up to a bound; decoders are shared by videos of equal
    parameters. A frame by itself costs the decoding of those from its key frame on.

    With `cache_bytes`, the first frame asked of an episode decodes all of that camera's, and later ones come from
    memory. Nothing is evicted there: once that memory is used up, other frames are decoded each time.
    """

    def __init__(
        self,
        index: EpisodeIndex,
        image_size: int | None = None,
        cache_bytes: int = 0,
        window: WindowSize = WindowSize(),  # noqa: B008  # frozen
    ) -> None:
        """Decodes nothing yet.

        Args:
            index: where the frames are.
            image_size: height and width in pixels that RGB is brought to, as the pipeline would; None leaves it.
            cache_bytes: memory for whole episodes of RGB, which needs `image_size`; 0 keeps none.
            window: of decoded runs and the decoders that wait between them.

        Raises:
            ValueError: frames are to be kept, but at no size.
        """
        if cache_bytes and image_size is None:
            raise ValueError("frames are kept at the model's size; give image_size with cache_bytes")
        self.index = index
        self._image_size = image_size
        self._cache_bytes = cache_bytes
        self._window_size = window
        self._pictures = Pictures(index, image_size)
        self._videos = OpenVideos(index.fps)
        self._decoders = DecoderPool()
        self._window = Window(window, lambda reader: self._decoders.give(reader.decoder))
        self._paths: dict[int, pathlib.Path] = {}
        self._kept: dict[tuple[int, int], np.ndarray] = {}
        self._used_bytes = 0
        self._lock = threading.Lock()
        self._decoding: dict[tuple[int, int], threading.Lock] = {}

    def __reduce__(self) -> tuple:
        """Returns how another process makes one of its own."""
        return EpisodeFrames, (self.index, self._image_size, self._cache_bytes, self._window_size)

    @property
    def sample_bytes(self) -> int:
        """Memory of one decoded sample in a run."""
        return self._pictures.nbytes

    @property
    def span_bytes(self) -> int:
        """Memory of the decoders that wait for one span's next run."""
        return sum(READER_BYTES_PER_PIXEL * video.height * video.width for video in self.index.videos)

    def instances(self, row: int, place: int) -> Instances:
        """Returns what the positions in the palette mean, of segmentation video `place` in the episode of that row."""
        return self._pictures.instances[place](row)

    def read(self, row: int, frame: int, run: Sequence[int] | None = None) -> tuple[np.ndarray, ...]:
        """Returns the frame of each of the index's videos; read-only if it is kept in memory.

        RGB is uint8 [h, w, 3]; depth float32 [h, w] in metres; segmentation uint16 [h, w], positions in the palette.
        With `run`, the same, but all of its frames are decoded now and kept until they are asked for, once each; where
        whole episodes are kept, a run changes nothing.

        Args:
            row: of the episode in the index.
            frame: in the episode, counted from 0.
            run: ascending frames of the episode, `frame` among them, of which the others will be asked for soon.

        Raises:
            FileNotFoundError: a video is missing.
            OSError: a video cannot be read.
            ValueError: a video does not hold the frame, or not as the meta files promise.
        """
        if run is None or self._cache_bytes:
            return tuple(self._single(row, place, frame) for place in range(len(self.index.videos)))
        pictures = self._window.take(row, frame)
        if pictures is None:
            pictures = self._decode_run(row, frame, run)
        return tuple(picture.array() for picture in pictures)

    def _single(self, row: int, place: int, frame: int) -> np.ndarray:
        """Returns one frame of one video, kept or decoded."""
        kept = self._kept_frames(row, place)
        if kept is not None:
            return kept[frame]
        return self._decode(row, place, [frame])[0].array()

    def _kept_frames(self, row: int, place: int) -> np.ndarray | None:
        if not self._cache_bytes or self.index.videos[place].modality != "rgb":
            return None
        kept = self._kept.get((row, place))
        return self._keep(row, place) if kept is None else kept

    def _keep(self, row: int, place: int) -> np.ndarray | None:
        """Returns all frames of the episode, or None if there is no memory left for them."""
        key, length, size = (row, place), int(self.index.lengths[row]), self._image_size or 0
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
            self._decode(row, place, range(length), lambda frame, picture: images.__setitem__(frame, picture.values))
            images.flags.writeable = False
            self._kept[key] = images
            return images

    def _decode(
        self, row: int, place: int, frames: Sequence[int], use: Callable[[int, Picture], None] | None = None
    ) -> list[Picture]:
        """Returns the pictures of ascending frames; with `use`, gives each to it instead, so that none is kept."""
        file, table = self._videos.get(*self._address(row, place))
        first = int(self.index.first_frames[row, place])
        pictures: list[Picture] = []
        with self._decoders.lent(table.codec) as decoder:
            shown = Reader(file, table, decoder).frames([first + frame for frame in frames], pause=False)
            for frame, image in zip(frames, shown, strict=True):
                picture = self._pictures.make(row, place, image, file.path)
                if use is None:
                    pictures.append(picture)
                else:
                    use(frame, picture)
        return pictures

    def _decode_run(self, row: int, frame: int, run: Sequence[int]) -> tuple[Picture, ...]:
        """Returns the pictures of a frame and keeps those of the rest of its run.

        If one of the run cannot be read, only the sample that has it must fail: the frame is then decoded by itself.
        """
        places = range(len(self.index.videos))
        try:
            by_video = [self._continue(row, place, run) for place in places]
        except (ValueError, OSError) as error:
            logger.debug("a run of %d frames is decoded one by one: %s", len(run), error)
            return tuple(self._decode(row, place, [frame])[0] for place in places)
        pictures = dict(zip(run, zip(*by_video, strict=True), strict=True))
        wanted = pictures.pop(frame)
        self._window.put(row, list(pictures), list(pictures.values()))
        return wanted

    def _continue(self, row: int, place: int, run: Sequence[int]) -> list[Picture]:
        """Returns the pictures of ascending frames, from a reader that waits, and lets it wait for the next run."""
        file, table = self._videos.get(*self._address(row, place))
        first = int(self.index.first_frames[row, place])
        numbers = [first + int(frame) for frame in run]
        here, onward = table.key_number(numbers[0]), table.key_number(numbers[-1] + 1)
        pause = onward <= numbers[-1] and numbers[-1] < table.last_number
        reader = self._window.take_reader((row, place, here))
        if reader is None:
            reader = Reader(file, table, self._decoders.take(table.codec))
        is_whole = False
        try:
            shown = reader.frames(numbers, pause=pause)
            make = functools.partial(self._pictures.make, row, place, path=file.path)
            pictures = list(map(make, shown))  # holds no frame while the next is decoded; see READER_BYTES_PER_PIXEL
            is_whole = True
        finally:
            if not (is_whole and pause):
                self._decoders.give(reader.decoder)
        if pause:
            self._window.put_reader((row, place, onward), reader)
        return pictures

    def _address(self, row: int, place: int) -> tuple:
        index = self.index
        first, video = int(index.first_frames[row, place]), int(index.video_ids[row, place])
        path = self._paths.get(video)
        if path is None:
            path = self._paths[video] = index.root / index.video_files[video]
        return path, first, first + int(index.lengths[row])
