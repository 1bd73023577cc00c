"""Where the packets of an MP4 file's video lie, and which frame each of them shows: the file's own sample table.

With it a frame is reached by reading the bytes from its key frame on. No container is opened, nothing is probed or
sought, and a file of 80,000 frames takes 1 MB of memory at most. Frames are numbered by presentation time on the data
set's grid of frames per second, counted from the first one shown and computed in integers; times in seconds decide
nothing.
Source: ISO/IEC 14496-12 (boxes), 14496-15 (hvc1, avc1).
"""

import dataclasses
import functools
import struct
from collections.abc import Iterator

import numpy as np

from openpi_b1k.data.frames.files import OpenFile

GRID_TOLERANCE = 4
"""A frame may lie 1/4 of a frame off the grid: containers round times, another frame rate is far off."""
CODECS = {
    b"hvc1": ("hevc", b"hvcC"),
    b"hev1": ("hevc", b"hvcC"),
    b"avc1": ("h264", b"avcC"),
    b"avc3": ("h264", b"avcC"),
    b"av01": ("libdav1d", b"av1C"),
}
"""Sample entry -> FFmpeg's decoder, and the box with the decoder's parameters."""
SAMPLE_ENTRY_HEADER = 78
"""Bytes of a video sample entry before its boxes."""


@dataclasses.dataclass(frozen=True)
class Codec:
    """What a decoder must be told. Videos of equal parameters can share decoders, one after the other."""

    name: str
    """FFmpeg's name of the decoder."""
    extradata: bytes
    colour: tuple[int, int, int, int] | None
    """(primaries, transfer, matrix, full range) where the file gives them."""


@dataclasses.dataclass(frozen=True, eq=False)
class SampleTable:
    """The packets of a video in the order of decoding. Axis: `p` packets."""

    codec: Codec
    offsets: np.ndarray
    """int64 [p]: first byte in the file."""
    sizes: np.ndarray
    """uint32 [p]: bytes."""
    numbers: np.ndarray
    """int32 [p]: the frame that the packet shows; ascending only without B-frames."""
    keys: np.ndarray
    """int32 [k]: the packets that decoding can start with."""

    @property
    def nbytes(self) -> int:
        """Memory held."""
        return 2 * self.numbers.nbytes + self.offsets.nbytes + self.sizes.nbytes + self.keys.nbytes

    @functools.cached_property
    def order(self) -> np.ndarray | None:
        """Packets in order of presentation; None if it is the order of decoding."""
        return None if (np.diff(self.numbers) > 0).all() else np.argsort(self.numbers, kind="stable").astype(np.int32)

    @functools.cached_property
    def key_numbers(self) -> np.ndarray:
        """The frames that the key packets show."""
        return self.numbers[self.keys]

    def packet(self, number: int) -> int:
        """Returns the packet that shows frame `number`.

        Raises:
            LookupError: none does; the message says which frames surround it.
        """
        place = int(np.searchsorted(self.numbers, number, sorter=self.order))
        packet = self._shown(place) if place < len(self.numbers) else None
        if packet is not None and self.numbers[packet] == number:
            return packet
        previous = int(self.numbers[self._shown(place - 1)]) if place else -1
        if packet is None:
            raise LookupError(f"no frame {number}, its last is {previous}")
        raise LookupError(f"no frame {number}: frame {self.numbers[packet]} follows {previous}")

    def _shown(self, place: int) -> int:
        return place if self.order is None else int(self.order[place])

    def key_packet(self, number: int) -> int:
        """Returns the packet to start with for frame `number`: the last key packet shown at or before it.

        Frames that follow a key packet but are shown before it may need the key packet before.
        """
        place = int(np.searchsorted(self.key_numbers, number, side="right"))
        return int(self.keys[place - 1]) if place else 0

    def key_number(self, number: int) -> int:
        """Returns the frame that `key_packet(number)` shows."""
        return int(self.numbers[self.key_packet(number)])

    @property
    def last_number(self) -> int:
        """The frame shown last."""
        return int(self.numbers[self._shown(len(self.numbers) - 1)])

    def part(self, first: int, stop: int) -> "SampleTable":
        """Returns the table of the packets that frames [first, stop) need, so that the rest can be forgotten."""
        wanted = np.flatnonzero((self.numbers >= first) & (self.numbers < stop))
        if not len(wanted):
            return self
        low, high = self.key_packet(first), int(wanted[-1]) + 1
        keys = self.keys[(self.keys >= low) & (self.keys < high)] - low
        cut = {name: getattr(self, name)[low:high].copy() for name in ("offsets", "sizes", "numbers")}
        return SampleTable(self.codec, keys=keys, **cut)


def read_table(file: OpenFile, fps: int) -> SampleTable:
    """Returns the sample table of the file's first video.

    Raises:
        ValueError: the file is no MP4, is cut off, is fragmented, holds no video or one of an unknown codec, or its
            frames are not on the grid of `fps` frames per second.
    """
    try:
        return _table(file, fps)
    except (struct.error, KeyError, IndexError) as error:
        raise ValueError(f"{file.path} is damaged: its sample table cannot be read ({error!r})") from error


def _table(file: OpenFile, fps: int) -> SampleTable:
    movie = _movie(file)
    if b"mvex" in dict(_boxes(movie)):
        raise ValueError(f"{file.path} is fragmented; remux it with ffmpeg -c copy")
    for kind, track in _boxes(movie):
        if kind != b"trak":
            continue
        media = _children(track, b"mdia")
        if bytes(_children(media, b"hdlr")[8:12]) == b"vide":
            break
    else:
        raise ValueError(f"{file.path} holds no video")
    samples = _children(media, b"minf", b"stbl")
    sizes = _sizes(_children(samples, b"stsz"))
    if not len(sizes):
        raise ValueError(f"{file.path} has no frames; download it again")
    header = _children(media, b"mdhd")
    (ticks,) = struct.unpack_from(">I", header, 20 if header[0] else 12)
    shown = _shown_times(samples, len(sizes))
    origin = max(int(shown.min()), _edited_start(file, track))
    boxes = dict(_boxes(samples))
    keys = _array(boxes[b"stss"], 8, ">u4") - 1 if b"stss" in boxes else np.arange(len(sizes))
    return SampleTable(
        codec=_codec(file, boxes[b"stsd"]),
        offsets=_offsets(boxes, sizes),
        sizes=sizes,
        numbers=_numbers(file, shown - origin, ticks, fps),
        keys=keys.astype(np.int32),
    )


def _movie(file: OpenFile) -> memoryview:
    """Returns the moov box: all that is not picture data."""
    offset = 0
    while True:
        header = file.read(offset, 16)
        if len(header) < 8:
            raise ValueError(f"{file.path} is no whole MP4 file (no moov box); download it again")
        size, kind = struct.unpack_from(">I4s", header)
        start = 8
        if size == 1:
            (size,), start = struct.unpack_from(">Q", header, 8), 16
        if not kind.isalnum() or (size < start and size != 0):
            raise ValueError(f"{file.path} is no MP4 file; download it again")
        if kind == b"moov":
            return memoryview(file.read(offset + start, size - start))
        if size == 0:
            raise ValueError(f"{file.path} is no whole MP4 file (no moov box); download it again")
        offset += size


def _boxes(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Yields (kind, content) of the boxes that `data` consists of."""
    offset = 0
    while offset + 8 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, offset)
        start = 8
        if size == 1:
            (size,), start = struct.unpack_from(">Q", data, offset + 8), 16
        if size < start:
            return
        yield kind, data[offset + start : offset + size]
        offset += size


def _children(data: memoryview, *kinds: bytes) -> memoryview:
    """Returns the content of the box at that path."""
    for kind in kinds:
        data = dict(_boxes(data))[kind]
    return data


def _array(data: memoryview, start: int, dtype: str, columns: int = 1) -> np.ndarray:
    """Returns the entries of a table box, whose count stands 4 bytes before `start`: int64 [n] or [n, columns]."""
    (count,) = struct.unpack_from(">I", data, start - 4)
    if len(data) - start < count * columns * np.dtype(dtype).itemsize:
        raise IndexError(f"a table of {count} entries is cut off")
    values = np.frombuffer(data, dtype, count * columns, start).astype(np.int64)
    return values if columns == 1 else values.reshape(count, columns)


def _sizes(data: memoryview) -> np.ndarray:
    equal, count = struct.unpack_from(">II", data, 4)
    return np.full(count, equal, np.uint32) if equal else _array(data, 12, ">u4").astype(np.uint32)


def _offsets(boxes: dict[bytes, memoryview], sizes: np.ndarray) -> np.ndarray:
    """Returns where each packet begins: packets follow each other within a chunk, and chunks have addresses."""
    chunks = _array(boxes[b"co64"], 8, ">u8") if b"co64" in boxes else _array(boxes[b"stco"], 8, ">u4")
    runs = _array(boxes[b"stsc"], 8, ">u4", columns=3)  # (first chunk from 1, packets in each, description)
    repeats = np.diff(runs[:, 0], append=len(chunks) + 1)
    counts = np.repeat(runs[:, 1], repeats)
    if counts.sum() != len(sizes) or len(counts) != len(chunks):
        raise IndexError(f"{len(sizes)} packets, but room for {counts.sum()} in chunks")
    ends = np.cumsum(sizes, dtype=np.int64)
    starts = ends - sizes
    firsts = np.cumsum(counts) - counts
    return starts + np.repeat(chunks - starts[np.minimum(firsts, len(sizes) - 1)], counts)


def _shown_times(samples: memoryview, count: int) -> np.ndarray:
    """Returns the presentation time of each packet in ticks."""
    boxes = dict(_boxes(samples))
    durations = _array(boxes[b"stts"], 8, ">u4", columns=2)
    lasting = np.repeat(durations[:, 1], durations[:, 0])
    times = np.cumsum(lasting) - lasting
    if b"ctts" in boxes:
        shifts = _array(boxes[b"ctts"], 8, ">i4", columns=2)
        times = times + np.repeat(shifts[:, 1], shifts[:, 0])
    if len(times) != count:
        raise IndexError(f"{count} packets, but {len(times)} times")
    return times


def _edited_start(file: OpenFile, track: memoryview) -> int:
    """Returns the time in the media, in ticks, at which the edit list begins to show it."""
    edits = dict(_boxes(dict(_boxes(track)).get(b"edts", memoryview(b""))))
    if b"elst" not in edits:
        return 0
    data = edits[b"elst"]
    (count,) = struct.unpack_from(">I", data, 4)
    entry = ">qqi" if data[0] else ">iii"
    begins = [struct.unpack_from(entry, data, 8 + i * struct.calcsize(entry))[1] for i in range(count)]
    shown = [begin for begin in begins if begin >= 0]  # -1 is a pause before the video begins
    if len(shown) > 1:
        raise ValueError(f"{file.path} is cut together by an edit list; re-encode it")
    return shown[0] if shown else 0


def _numbers(file: OpenFile, times: np.ndarray, ticks: int, fps: int) -> np.ndarray:
    """Returns the frame on the grid at each time."""
    scaled = times * fps
    numbers = (2 * scaled + ticks) // (2 * ticks)
    off = np.flatnonzero(np.abs(scaled - numbers * ticks) * GRID_TOLERANCE > ticks)
    if len(off):
        rate = ticks * (len(times) - 1) / (times.max() - times.min())
        raise ValueError(
            f"{file.path} shows a frame {scaled[off[0]] / ticks:.2f} frames after its start, but the data set has "
            f"{fps} frames per second; the file has {rate:g}"
        )
    return numbers.astype(np.int32)


def _codec(file: OpenFile, descriptions: memoryview) -> Codec:
    kind, entry = next(_boxes(descriptions[8:]))
    if kind not in CODECS:
        known = ", ".join(sorted({name for name, _ in CODECS.values()}))
        raise ValueError(f"{file.path} is encoded as {kind.decode('latin1')!r}; this reader knows {known}")
    name, parameters = CODECS[kind]
    boxes = dict(_boxes(entry[SAMPLE_ENTRY_HEADER:]))
    colour = boxes.get(b"colr", memoryview(b""))
    values = struct.unpack_from(">HHHB", colour, 4) if bytes(colour[:4]) == b"nclx" else None
    return Codec(
        name=name,
        extradata=bytes(boxes[parameters]),
        colour=(*values[:3], values[3] >> 7) if values else None,
    )
