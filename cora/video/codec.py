"""Video files: what is in one, its exact frames, and how one is written.

The only file that knows decord, and with packets.py the only one that knows PyAV. It knows nothing of clips, labels or
crops, and it never guesses: either the very frames that were asked for come back, or VideoError says why not. A pass
over the packets of a file says which frames there are, when they are shown and where decoding may begin; decoding from
there gives every frame alike, by whatever way and beside whatever others it is asked for. What no decoder notices is
said in data/README.md.

decord reads only what it is sure to read as PyAV does: 8-bit H.264 in mp4, one track, progressive, not turned, whose
settings never change, whose key frames are all whole and shown first, and whose packets are intact. It cannot be told
which track to read, blends the fields of interlaced pictures, rescales pictures that change size, mends what is
damaged, and is wrong in open groups of pictures, HEVC, AVI and MPEG-TS.
"""

import os
from collections.abc import Iterator
from fractions import Fraction
from itertools import islice
from pathlib import Path

import av
import decord
import numpy as np
from av.container import InputContainer
from av.packet import Packet as Piece
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Int, UInt8

from cora.video import packets
from cora.video.packets import Scan, opened, upright
from cora.video.promise import VideoError, VideoInfo

decord.logging.set_level(decord.logging.QUIET)

AT_ONCE = 2**26
"""Bytes of pictures in one block of a stream."""
LATE = 16
"""By so many pictures a decoder may hand one out too late: no codec's delay is longer."""


def inspect(path: Path) -> VideoInfo:
    """Returns what the file promises, from its packets and first picture; AVI and the like are decoded to be counted.

    Raises VideoError for a file that holds no video that can be opened.
    """
    return packets.scan(path).info


def read(path: Path, frames: Int[np.ndarray, "T"]) -> UInt8[np.ndarray, "T H W 3"]:
    """Returns exactly the frames whose numbers are asked for, in RGB; numbers may repeat and come in any order.

    Raises VideoError where the file cannot give one of them, and IndexError for a number the file never promised.
    """
    scan = _checked(path, frames := np.asarray(frames, np.int64))
    if not len(frames):
        return np.zeros((0, scan.info.height, scan.info.width, 3), np.uint8)
    video = _read_decord(path, frames, scan.info) if scan.by_decord else None
    if video is not None:
        return _promised(path, video, scan.info)
    needed, where = np.unique(frames, return_inverse=True)
    return np.stack(list(_pictures(path, needed, scan)))[where]


def stream(path: Path, frames: Int[np.ndarray, "T"]) -> Iterator[UInt8[np.ndarray, "n H W 3"]]:
    """Yields the frames of these ascending numbers, the same as `read` returns, in one pass, `AT_ONCE` bytes at a time.

    Raises as `read` does, but late: the frames before a damage have been given out by then.
    """
    scan = _checked(path, frames)
    pictures = _pictures(path, frames, scan)
    count = max(1, AT_ONCE // (scan.info.height * scan.info.width * 3))
    for _ in range(0, len(frames), count):
        yield np.stack(list(islice(pictures, count)))


def _checked(path: Path, frames: Int[np.ndarray, "T"]) -> Scan:
    scan = packets.scan(path)
    outside = frames[(frames < 0) | (frames >= scan.info.frames)]
    if len(outside):
        raise IndexError(f"{path}: frame {outside[0]} does not exist; legal: 0 to {scan.info.frames - 1}")
    return scan


def write(path: Path, video: UInt8[np.ndarray, "T H W 3"], fps: float) -> None:
    """Writes RGB frames as an H.264 mp4 (yuv420p, a key frame at least every 12 frames), equal bytes for equal input.

    The file appears under its name only when complete. Raises ValueError for odd sides, which 4:2:0 cannot hold.
    """
    if not fps > 0:
        raise ValueError(f"fps = {fps!r}: must be positive; nearest: 1.0")
    count, height, width = video.shape[:3]
    if count == 0 or height % 2 or width % 2:
        raise ValueError(f"video of shape {video.shape}: needs a frame and even sides; nearest: "
                         f"{(max(count, 1), height + height % 2, width + width % 2, 3)}")
    rate = Fraction(fps).limit_denominator(1001)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with av.open(str(temporary), "w", format="mp4") as out:
            options = {"preset": "ultrafast", "crf": "16", "g": "12", "threads": "1"}
            stream = out.add_stream("libx264", rate=rate, options=options)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            for picture in video:
                out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
            out.mux(stream.encode(None))
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


# ------------------------------------------------------------------------------------------------- decoding


def _read_decord(path: Path, wanted: Int[np.ndarray, "T"], info: VideoInfo) -> UInt8[np.ndarray, "T H W 3"] | None:
    """Returns the frames, or None where decord fails or counts other frames than the packets hold.

    Its failures prove nothing: version 3.4.0 cannot hand out pictures 16, 24, 32, 48 or 96 pixels wide, nor open a
    file whose name is not UTF-8. PyAV is asked then, and has the better reasons too.
    """
    try:
        # Beware: without fault_tol decord fills frames that it cannot decode with copies of their neighbours.
        reader = decord.VideoReader(str(path.absolute()), num_threads=1, fault_tol=1)
        return reader.get_batch(wanted).asnumpy() if len(reader) == info.frames else None
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError, UnicodeEncodeError):
        return None


def _pictures(path: Path, frames: Int[np.ndarray, "T"], scan: Scan) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yields the frames of these ascending numbers, and leaps over groups of pictures without any of them."""
    names = frames if scan.stamps is None else scan.stamps[frames]
    groups = np.searchsorted(scan.keys, names, side="right")
    convert = VideoReformatter()  # one for all frames: a new one for each takes longer than decoding small pictures
    numbers = iter(frames.tolist())
    with opened(path, scan.track) as (container, stream):
        for run in np.split(names, np.flatnonzero(np.diff(groups) > 1) + 1) if len(names) else ():
            for frame in _ordered(run.tolist(), _frames_from(container, stream, int(run[0]), scan)):
                number = next(numbers)
                if frame is None:
                    raise VideoError(path, f"ends or is damaged before frame {number} of {scan.info.frames}")
                yield _promised(path, upright(frame, convert, scan.turn), scan.info)


def _ordered(names: list[int], decoded: Iterator[tuple[int, av.VideoFrame]]) -> Iterator[av.VideoFrame | None]:
    """Yields the frame of each name, or None where there is none; corrupt ones do not count.

    Frames may come out of order by `LATE` of those named, so that few wait at a time.
    """
    needed, found, given = set(names), dict[int, av.VideoFrame](), 0
    for name, frame in decoded:
        if name in needed and not frame.is_corrupt:
            found[name] = frame
        if name >= names[-1]:
            break
        if len(found) > LATE:
            needed.discard(names[given])
            yield found.pop(names[given], None)
            given += 1
    yield from (found.pop(name, None) for name in names[given:])


def _promised(path: Path, pictures: UInt8[np.ndarray, "... 3"], info: VideoInfo) -> UInt8[np.ndarray, "... 3"]:
    height, width = pictures.shape[-3:-1]
    if (height, width) != (info.height, info.width):
        raise VideoError(path, f"has pictures of {height, width} where it promises {info[2:4]} (height, width)")
    return pictures


def _frames_from(
    container: InputContainer, stream: VideoStream, first: int, scan: Scan
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields (time or number, frame) from the key frame before `first` on."""
    if scan.stamps is None:
        yield from enumerate(container.decode(stream))
        return
    key = int(scan.keys[np.searchsorted(scan.keys, first, side="right") - 1])
    for packet in _packets_from(container, stream, key):
        for frame in packet.decode():
            if frame.pts is not None:
                yield frame.pts, frame


def _packets_from(container: InputContainer, stream: VideoStream, key: int) -> Iterator[Piece]:
    """Yields the packets from that of the time `key` on: a container seeks by its own marks, and lands elsewhere."""
    for target in (key, key - int(60 / (stream.time_base or 1)), (-(2**40))):
        container.seek(target, stream=stream)
        packets = container.demux(stream)
        for packet in packets:
            if packet.pts == key:
                yield packet
                yield from packets
                return
            if packet.pts is None or packet.pts > key:
                break
