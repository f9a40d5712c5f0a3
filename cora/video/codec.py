"""Video files: what is in one, its exact frames, and how one is written.

The only file that knows decord and PyAV. It knows nothing of clips, labels or crops, and it never guesses: either
the very frames that were asked for come back, or VideoError says why not.

Two decoders are used because neither is right everywhere. decord returns wrong frames without a word from some files:
open groups of pictures, HEVC, MPEG-TS, AVI with B-frames, trimmed stream copies (it repeats the last frame). PyAV
knows every frame's time, and is asked there. A pass over the packets of a file and its first picture tells these files
apart. What it cannot tell: packets that vanished from a truncated or damaged Matroska file, which keeps no count of
them; the frames after the gap then have lower numbers.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import av
import decord
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Int, UInt8

from cora.video.promise import Packet, VideoError, VideoInfo, check_packets, leading_pictures

decord.logging.set_level(decord.logging.QUIET)

SEEKABLE = ("mp4", "matroska")
"""Containers whose timestamps name frames; in every other the frames are counted from the first."""
TRUSTED = ("h264", "vp8", "vp9", "av1", "mjpeg", "mpeg4")
"""Codecs that decord reads rightly out of these containers, as PyAV does, if no key frame has leading pictures."""
AT_ONCE = 2**26
"""Bytes of pictures in one block of a stream."""
LATE = 16
"""By so many pictures a decoder may hand one out too late: no codec's delay is longer."""


class _Scan(NamedTuple):
    """One pass over the packets: the promise, who may decode it, and when frames and key frames are shown."""

    info: VideoInfo
    by_decord: bool
    stamps: Int[np.ndarray, "frames"] | None
    """Presentation time of every frame, ascending; None where frames must be counted."""
    keys: Int[np.ndarray, "keys"]


def inspect(path: Path) -> VideoInfo:
    """Returns what the file promises, from its packets and first picture; AVI and the like are decoded to be counted.

    Raises VideoError for a file that holds no video that can be opened.
    """
    return _scan(path).info


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


def _checked(path: Path, frames: Int[np.ndarray, "T"]) -> _Scan:
    scan = _scan(path)
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


# ------------------------------------------------------------------------------------------------- one pass of packets


def _scan(path: Path) -> _Scan:
    try:
        status = path.stat()
    except OSError as error:
        raise VideoError(path, _missing(error)) from error
    if path.is_dir():
        raise VideoError(path, "is a directory")
    if status.st_size == 0:
        raise VideoError(path, "is empty")
    return _scan_version(path, status.st_size, status.st_mtime_ns)


def _missing(error: OSError) -> str:
    return "does not exist" if isinstance(error, FileNotFoundError) else (error.strerror or "cannot be opened").lower()


@contextmanager
def _opened(path: Path, options: dict[str, str] | None = None) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens the file's first video stream; whatever PyAV or the disk has against it becomes a VideoError."""
    try:
        with av.open(str(path.absolute()), options=options, metadata_errors="replace") as container:
            if not container.streams.video:
                raise VideoError(path, "has no video stream")
            stream = container.streams.video[0]
            if stream.codec_context is None:
                raise VideoError(path, "has a codec that nothing here decodes")
            stream.codec_context.thread_count = 1  # clips are decoded side by side already
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise VideoError(path, f"cannot be decoded ({error.strerror or error})".lower()) from error


@lru_cache(maxsize=2048)
def _scan_version(path: Path, size: int, mtime_ns: int) -> _Scan:
    """Scans the file as it stands: size and time of change are there to make the cache forget an older version."""
    with _opened(path) as (container, stream):
        packets, picture = _packets(container, stream)
        promised = stream.frames
        timed = any(name in container.format.name for name in SEEKABLE) and all(p.pts is not None for p in packets)
        rate = float(stream.average_rate or stream.guessed_rate or 0)
        codec = stream.codec_context.codec.canonical_name
    check_packets(path, rate, packets)
    if picture is None:
        raise VideoError(path, "has no picture that can be decoded")
    height, width = _upright(picture, VideoReformatter()).shape[:2]
    info = VideoInfo(0, rate, height, width, codec)
    if not timed:
        return _Scan(info._replace(frames=_count(path, promised)), False, None, np.zeros(0, np.int64))
    if len(packets) < promised:
        _check_samples(path, promised)
    keys = np.sort(np.array([p.pts for p in packets if p.key], np.int64))
    # What is shown before the first key frame belongs to pictures that were cut off.
    stamps = np.unique(np.array([p.pts for p in packets if not p.discard and p.pts >= keys[0]], np.int64))
    whole = len(stamps) == len(packets) and not leading_pictures(packets)
    # Of more than eight bits the two decoders make unlike pictures, and a stream must be equal to a reading.
    plain = picture.rotation == 0 and all(part.bits == 8 for part in picture.format.components)
    trusted = info.codec in TRUSTED and whole and plain
    return _Scan(info._replace(frames=len(stamps)), trusted, stamps, keys)


def _packets(container: InputContainer, stream: VideoStream) -> tuple[list[Packet], av.VideoFrame | None]:
    """Returns all packets and the first picture: only pictures tell how a film is rotated."""
    packets: list[Packet] = []
    picture = None
    for packet in container.demux(stream):
        if packet.size:
            packets.append(Packet(packet.pts, packet.is_keyframe, packet.is_discard, packet.is_corrupt))
        if picture is None and any(p.key for p in packets):
            picture = next(iter(packet.decode()), None)
    return packets, picture


def _check_samples(path: Path, promised: int) -> None:
    """Raises VideoError if packets are missing from the file, not merely left out by its list of edits."""
    with _opened(path, {"ignore_editlist": "1"}) as (container, stream):
        held = len(_packets(container, stream)[0])
    if held < promised:
        raise VideoError(path, f"is truncated: holds {held} of {promised} frames")


def _count(path: Path, promised: int) -> int:
    """Counts by decoding everything: AVI and MPEG-TS hold packets that are no frames, and frames without a time.

    Two frames may be missing: streams with packed B-frames end in placeholders that are counted and never shown.
    """
    with _opened(path) as (container, stream):
        count = sum(1 for _ in container.decode(stream))
    if count == 0:
        raise VideoError(path, "has no frames")
    if count < promised - 2:
        raise VideoError(path, f"is truncated or damaged: gives {count} of {promised} frames")
    return count


# ------------------------------------------------------------------------------------------------- the two decoders


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


def _pictures(path: Path, frames: Int[np.ndarray, "T"], scan: _Scan) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yields by PyAV the frames of these ascending numbers, and leaps over groups of pictures without any of them.

    decord has no part in this: its own thread decodes far ahead of what is asked for, up to a whole film.
    """
    names = frames if scan.stamps is None else scan.stamps[frames]
    groups = np.searchsorted(scan.keys, names, side="right")
    convert = VideoReformatter()  # one for all frames: a new one for each takes longer than decoding small pictures
    numbers = iter(frames.tolist())
    with _opened(path) as (container, stream):
        for run in np.split(names, np.flatnonzero(np.diff(groups) > 1) + 1) if len(names) else ():
            # decord hands out what its decoder has mended, so the same is done here where decord is trusted.
            for frame in _ordered(run.tolist(), _frames_from(container, stream, int(run[0]), scan), scan.by_decord):
                number = next(numbers)
                if frame is None:
                    raise VideoError(path, f"ends or is damaged before frame {number} of {scan.info.frames}")
                yield _promised(path, _upright(frame, convert), scan.info)


def _ordered(
    names: list[int], decoded: Iterator[tuple[int, av.VideoFrame]], mended: bool
) -> Iterator[av.VideoFrame | None]:
    """Yields the frame of each name, or None where there is none; `mended` says whether corrupt ones count.

    Frames may come out of order by `LATE` of those named, so that few wait at a time.
    """
    needed, found, given = set(names), dict[int, av.VideoFrame](), 0
    for name, frame in decoded:
        if name in needed and (mended or not frame.is_corrupt):
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


def _upright(frame: av.VideoFrame, convert: VideoReformatter) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the picture in RGB, turned as the file says it is to be shown."""
    return np.rot90(convert.reformat(frame, format="rgb24").to_ndarray(), frame.rotation // 90)


def _frames_from(
    container: InputContainer, stream: VideoStream, first: int, scan: _Scan
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Yields (time or number, frame) from the key frame before `first` on."""
    if scan.stamps is None:
        yield from enumerate(container.decode(stream))
        return
    container.seek(int(scan.keys[np.searchsorted(scan.keys, first, side="right") - 1]), stream=stream)
    for frame in container.decode(stream):
        if frame.pts is not None:
            yield frame.pts, frame
