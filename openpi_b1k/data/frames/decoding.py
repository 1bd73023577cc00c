"""From packets to frames: decoders without containers, which continue where they stopped."""

import collections
import contextlib
import threading
from collections.abc import Iterator, Sequence

import av
from av.error import FFmpegError
from av.video.codeccontext import VideoCodecContext

from openpi_b1k.data.frames.files import OpenFile
from openpi_b1k.data.frames.mp4 import Codec, SampleTable

IDLE_DECODERS = 8
"""Decoders kept for the next video of the same parameters; an open HEVC decoder takes about 4 MB."""
OPTIONS = {
    "hevc": {"err_detect": "explode"},
    "h264": {"strict": "strict"},
    "libdav1d": {},
}
"""By decoder. Damage is an error, except in H.264, which would take the frames that an open GOP lacks for it; without
`strict`, an H.264 stream that does not tell its delay loses frames at the start."""
READ_AHEAD = 2**20
"""Bytes read at once, at most."""
SINGLE_LAYER = 1
HEVC_LAYERS_BYTE = 21
"""Of hvcC: constant frame rate (2 bits), temporal layers (3), nested (1), length size (2)."""


class Decoder:
    """One of FFmpeg's decoders, on one thread: a data set is read by many processes at once."""

    def __init__(self, codec: Codec) -> None:
        """Makes a decoder for videos of these parameters.

        Raises:
            ValueError: this FFmpeg lacks it.
        """
        self.codec = codec
        self._skips = False
        self._is_fresh = True
        try:
            context = av.CodecContext.create(codec.name, "r")
        except (FFmpegError, ValueError) as error:
            raise ValueError(f"this build of FFmpeg cannot decode {codec.name}: {error}") from error
        if not isinstance(context, VideoCodecContext):
            raise TypeError(f"{codec.name} is no video codec")
        context.thread_count = 1
        context.extradata = codec.extradata
        context.options = OPTIONS[codec.name]
        if codec.colour is not None:
            context.color_primaries, context.color_trc, context.colorspace, full = codec.colour
            context.color_range = 2 if full else 1
        self._context = context

    def feed(self, data: bytes, number: int, *, skip: bool) -> list[av.VideoFrame]:
        """Returns the frames that are ready once the packet of frame `number` is decoded; `pts` is their number.

        With `skip`, the packet is left out if no other frame needs it.

        Raises:
            FFmpegError: the packet is damaged.
        """
        if skip != self._skips:
            self._context.skip_frame = "NONREF" if skip else "DEFAULT"
            self._skips = skip
        self._is_fresh = False
        packet = av.Packet(data)
        packet.pts = number
        return self._context.decode(packet)

    def drain(self) -> list[av.VideoFrame]:
        """Returns the frames that were waiting for later packets. `reset` must follow."""
        return self._context.decode(None)

    def reset(self) -> None:
        """Forgets everything fed; the next packet must be a key packet."""
        if not self._is_fresh:
            self._context.flush_buffers()
            self._is_fresh = True


class DecoderPool:
    """Decoders by parameters, lent to one reader at a time. Threads may share one."""

    def __init__(self, most_idle: int = IDLE_DECODERS) -> None:
        """Makes none yet; keeps at most `most_idle` that nobody uses."""
        self._most_idle = most_idle
        self._idle: collections.deque[Decoder] = collections.deque()
        self._lock = threading.Lock()

    def take(self, codec: Codec) -> Decoder:
        """Returns a decoder that nobody else has."""
        with self._lock:
            for decoder in self._idle:
                if decoder.codec == codec:
                    self._idle.remove(decoder)
                    return decoder
        return Decoder(codec)

    def give(self, decoder: Decoder) -> None:
        """Takes a decoder back, whatever its state."""
        decoder.reset()
        with self._lock:
            self._idle.append(decoder)
            while len(self._idle) > self._most_idle:
                self._idle.popleft()

    @contextlib.contextmanager
    def lent(self, codec: Codec) -> Iterator[Decoder]:
        """Gives a decoder for the length of a `with`."""
        decoder = self.take(codec)
        try:
            yield decoder
        finally:
            self.give(decoder)


class Reader:
    """Reads frames of one video in ascending order, and later ones without starting over.

    A frame costs the packets from its key frame to itself; if it lies ahead in the same run of packets, those from
    where the reader stands. Frames that no other needs (most B-frames) are decoded only if they are wanted.
    """

    def __init__(self, file: OpenFile, table: SampleTable, decoder: Decoder) -> None:
        """Reads nothing yet; `decoder` is this reader's own while it lives, and fresh or reset."""
        self.decoder = decoder
        self._file = file
        self._table = table
        self._next: int | None = None
        self._begun = 0
        self._shown = -1
        self._ready: collections.deque[av.VideoFrame] = collections.deque()
        self._packets: list[tuple[int, int, bytes]] = []
        self._loaded = 0
        self._may_skip = may_skip(table.codec)

    def frames(self, numbers: Sequence[int], *, pause: bool) -> Iterator[av.VideoFrame]:
        """Yields the frames of strictly ascending numbers; with `pause`, ready to go on behind the last of them.

        Without `pause` no packet behind the last frame's is decoded, but the next call starts at a key frame.

        Raises:
            ValueError: a frame is not there or cannot be decoded; the reader may be used no more.
        """
        wanted = frozenset(numbers)
        for place, number in enumerate(numbers):
            packet = self._locate(number)
            key = self._table.key_packet(number)
            if not self._is_ready(number) and (self._next is None or key > self._next or number <= self._shown):
                self._start(key)
            last = None if pause else self._last_packet(numbers, place, packet)
            yield self._advance(number, wanted, last)

    def _locate(self, number: int) -> int:
        try:
            return self._table.packet(number)
        except LookupError as error:
            raise ValueError(
                f"{self._file.path} has {error}: the video is shorter than the rows it belongs to; download it "
                "again, or choose other tasks with --data.tasks"
            ) from None

    def _last_packet(self, numbers: Sequence[int], place: int, packet: int) -> int | None:
        """Returns the packet behind which the decoder may be drained, because the next frame starts at a later key."""
        if place + 1 == len(numbers):
            return packet
        return packet if self._table.key_packet(numbers[place + 1]) > packet else None

    def _is_ready(self, number: int) -> bool:
        return any(frame.pts == number for frame in self._ready)

    def _start(self, key: int) -> None:
        if self._next is not None:
            self.decoder.reset()
        self._next, self._begun, self._shown = key, int(self._table.numbers[key]), -1
        self._ready.clear()

    def _advance(self, number: int, wanted: frozenset[int], last: int | None) -> av.VideoFrame:
        """Returns frame `number`, decoding packets until it is shown."""
        while True:
            shown = self._take(number)
            if shown is not None:
                return shown
            self._decode(number, wanted, last)

    def _take(self, number: int) -> av.VideoFrame | None:
        """Returns frame `number` if it has been decoded, and drops those before it."""
        while self._ready:
            frame = self._ready.popleft()
            if frame.pts == number:
                return frame
        return None

    def _decode(self, number: int, wanted: frozenset[int], last: int | None) -> None:
        """Decodes a packet on the way to frame `number`.

        No other frame may be held meanwhile: each that is makes the decoder's memory larger by one, for good.
        """
        if self._next is None:
            raise ValueError(f"{self._file.path} cannot be decoded: frame {number} was not shown; download it again")
        ended = self._next == len(self._table.sizes) or (last is not None and self._next > last)
        try:
            frames = self.decoder.drain() if ended else self._feed(self._next, number, wanted)
        except FFmpegError as error:
            raise self._damaged(number, error) from error
        if ended:
            self.decoder.reset()
            self._next = None
        for frame in frames:
            if frame.is_corrupt:
                raise self._damaged(number, "a frame is corrupt")
            self._shown = frame.pts if frame.pts is not None else self._shown
        self._ready.extend(frames)

    def _feed(self, packet: int, number: int, wanted: frozenset[int]) -> list[av.VideoFrame]:
        shows, data = self._packet(packet, number)
        self._next = packet + 1
        if shows < self._begun:
            return []  # follows the key packet, is shown before it and needs the one before: nothing else needs it
        skip = self._may_skip and shows not in wanted and shows < number
        return self.decoder.feed(data, shows, skip=skip)

    def _packet(self, packet: int, number: int) -> tuple[int, bytes]:
        """Returns (frame shown, bytes) of a packet, read together with those up to frame `number`'s."""
        place = packet - self._loaded
        if not 0 <= place < len(self._packets):
            self._load(packet, max(packet, self._table.packet(number)))
            place = 0
        shows, size, data = self._packets[place]
        if len(data) < size:
            raise ValueError(f"{self._file.path} is cut off: frame {shows} lies behind its end; download it again")
        return shows, data

    def _load(self, first: int, last: int) -> None:
        """Reads the packets from `first` to `last`, or `first` alone if they lie too far apart."""
        table = self._table
        starts = table.offsets[first : last + 1] - table.offsets[first]
        sizes = table.sizes[first : last + 1]
        stretch = int(starts[-1]) + int(sizes[-1])
        if not (starts >= 0).all() or stretch > READ_AHEAD:
            starts, sizes, stretch = starts[:1], sizes[:1], int(sizes[0])
        data = self._file.read(int(table.offsets[first]), stretch)
        shows = table.numbers[first : first + len(starts)].tolist()
        places = zip(shows, starts.tolist(), sizes.tolist(), strict=True)
        self._packets = [(number, size, data[start : start + size]) for number, start, size in places]
        self._loaded = first

    def _damaged(self, number: int, reason: object) -> ValueError:
        return ValueError(f"{self._file.path} cannot be decoded near frame {number}: {reason}; download it again")


def may_skip(codec: Codec) -> bool:
    """Tells whether packets that a stream marks as not referred to can be left out without changing any other.

    HEVC means "by no picture of the same temporal layer", which settles it where there is only one.
    """
    if codec.name == "hevc":
        return len(codec.extradata) > HEVC_LAYERS_BYTE and codec.extradata[HEVC_LAYERS_BYTE] >> 3 & 7 == SINGLE_LAYER
    return codec.name == "h264"
