"""What is made of a decoded frame, by modality: the least worth keeping, and the array a sample has."""

import dataclasses
import pathlib

import av
import numpy as np

from openpi_b1k.data.frames import depth, segmentation
from openpi_b1k.data.frames.rgb import RgbFrames
from openpi_b1k.data.frames.video import check_shape
from openpi_b1k.data.index.episodes import EpisodeIndex, Video


@dataclasses.dataclass(frozen=True, eq=False)
class Picture:
    """A frame as it is kept until its sample is asked for."""

    values: np.ndarray
    """rgb uint8 [h, w, 3]; depth uint16 [h, w], codes; segmentation uint16 [h, w], positions in the palette."""
    metres: np.ndarray | None = None
    """Of depth: what the codes mean, float32 [n]."""

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return self.values.nbytes

    def array(self) -> np.ndarray:
        """Returns the image, the depth in metres float32 [h, w], or the positions in the palette."""
        return self.values if self.metres is None else self.metres[self.values]


class Pictures:
    """Makes pictures of the frames of a data set's videos. Threads may share one."""

    def __init__(self, index: EpisodeIndex, image_size: int | None) -> None:
        """Reads nothing yet.

        Args:
            index: of the data set.
            image_size: height and width in pixels that RGB is brought to; None leaves it as stored. Depth and
                segmentation are always as stored.
        """
        self._videos = index.videos
        self._image_size = image_size
        self._scaled, self._stored = RgbFrames(image_size), RgbFrames(None)
        self._codings = {place: depth.coding(video.key) for place, video in enumerate(index.videos)}
        self.instances = {
            place: segmentation.EpisodeInstances(index, video.camera)
            for place, video in enumerate(index.videos)
            if video.modality == "segmentation"
        }

    def make(self, row: int, place: int, frame: av.VideoFrame, path: pathlib.Path) -> Picture:
        """Returns the picture of a frame of video `place` in the episode of that row.

        Raises:
            ValueError: its size or pixel format is not the declared one, or nothing tells what its colours mean.
        """
        video = self._videos[place]
        check_shape(path, frame, (video.height, video.width))
        if video.modality == "depth":
            return Picture(depth.luma(frame), depth.metres(self._codings[place], frame.format.name))
        if video.modality == "segmentation":
            return Picture(segmentation.positions(self._stored(frame), len(self.instances[place](row).ids)))
        return Picture(self._scaled(frame))

    @property
    def nbytes(self) -> int:
        """Memory of one sample's pictures."""
        return sum(self._nbytes(video) for video in self._videos)

    def _nbytes(self, video: Video) -> int:
        if video.modality != "rgb":
            return video.height * video.width * 2
        return (video.height * video.width if self._image_size is None else self._image_size**2) * 3
