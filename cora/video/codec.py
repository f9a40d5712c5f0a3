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
from pathlib import Path
from typing import Any, NamedTuple

import av
import decord
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Int, UInt8

decord.logging.set_level(decord.logging.QUIET)

SEEKABLE = ("mp4", "matroska")
"""Containers whose timestamps name frames; in every other the frames are counted from the first."""
TRUSTED = ("h264", "vp8", "vp9", "av1", "mjpeg", "mpeg4")
"""Codecs that decord reads rightly out of these containers, if no key frame has leading pictures."""


class VideoError(Exception):
    """A file that cannot be read as video: `path`, and `reason` in a few words."""

    def __init__(self, path: Path, reason: str) -> None:
        super().__init__(f"{path}: {reason}")
        self.path = path
        self.reason = reason

    def __reduce__(self) -> tuple[type["VideoError"], tuple[Path, str]]:
        # Exception pickles its message alone, and a worker process could not hand the error back.
        return VideoError, (self.path, self.reason)


class VideoInfo(NamedTuple):
    """What a file promises: number of frames, frames a second, size in pixels, name of the codec."""

    frames: int
    fps: float
    height: int
    width: int
    codec: str


class _Packet(NamedTuple):
    pts: Any  # int, or None where the container gives no time; checked before use
    key: bool
    discard: bool
    corrupt: bool


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
    scan = _scan(path)
    wanted = np.asarray(frames, np.int64)
    outside = wanted[(wanted < 0) | (wanted >= scan.info.frames)]
    if len(outside):
        raise IndexError(f"{path}: frame {outside[0]} does not exist; legal: 0 to {scan.info.frames - 1}")
    if not len(wanted):
        return np.zeros((0, scan.info.height, scan.info.width, 3), np.uint8)
    video = _read_decord(path, wanted, scan.info) if scan.by_decord else None
    video = _read_av(path, wanted, scan) if video is None else video
    if video.shape[1:3] != (scan.info.height, scan.info.width):
        raise VideoError(path, f"has pictures of {video.shape[1:3]} where it promises {scan.info[2:4]} (height, width)")
    return video


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
        with av.open(str(path.absolute()), options=options) as container:
            if not container.streams.video:
                raise VideoError(path, "has no video stream")
            stream = container.streams.video[0]
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
    _check_packets(path, rate, packets)
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
    whole = len(stamps) == len(packets) and not _leading_pictures(packets)
    trusted = info.codec in TRUSTED and whole and picture.rotation == 0
    return _Scan(info._replace(frames=len(stamps)), trusted, stamps, keys)


def _packets(container: InputContainer, stream: VideoStream) -> tuple[list[_Packet], av.VideoFrame | None]:
    """Returns all packets and the first picture: only pictures tell how a film is rotated."""
    packets: list[_Packet] = []
    picture = None
    for packet in container.demux(stream):
        if packet.size:
            packets.append(_Packet(packet.pts, packet.is_keyframe, packet.is_discard, packet.is_corrupt))
        if picture is None and any(p.key for p in packets):
            picture = next(iter(packet.decode()), None)
    return packets, picture


def _check_packets(path: Path, rate: float, packets: list[_Packet]) -> None:
    if not rate > 0:
        raise VideoError(path, "does not say how many frames a second it has")
    if any(p.corrupt for p in packets):
        raise VideoError(path, "is truncated or damaged: a packet is incomplete")
    if not any(p.key for p in packets):
        raise VideoError(path, "has no frames" if not packets else "has no key frame to start from")


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


def _leading_pictures(packets: list[_Packet]) -> bool:
    """Says whether a picture stored after a key frame is shown before it: the mark of an open group of pictures."""
    key = packets[0].pts
    for packet in packets:
        key = packet.pts if packet.key else key
        if packet.pts < key:
            return True
    return False


# ------------------------------------------------------------------------------------------------- the two decoders


def _read_decord(path: Path, wanted: Int[np.ndarray, "T"], info: VideoInfo) -> UInt8[np.ndarray, "T H W 3"] | None:
    """Returns the frames, or None where decord fails or counts other frames than the packets hold.

    Its failures prove nothing: version 3.4.0 cannot hand out pictures 16, 24, 32, 48 or 96 pixels wide. PyAV is asked
    then, and has the better reasons too.
    """
    try:
        # Beware: without fault_tol decord fills frames that it cannot decode with copies of their neighbours.
        reader = decord.VideoReader(str(path.absolute()), num_threads=1, fault_tol=1)
        return reader.get_batch(wanted).asnumpy() if len(reader) == info.frames else None
    except (decord.DECORDError, decord.DECORDLimitReachedError, RuntimeError):
        return None


def _read_av(path: Path, wanted: Int[np.ndarray, "T"], scan: _Scan) -> UInt8[np.ndarray, "T H W 3"]:
    names = wanted if scan.stamps is None else scan.stamps[wanted]
    first, last, needed = int(names.min()), int(names.max()), set(names.tolist())
    found: dict[int, UInt8[np.ndarray, "H W 3"]] = {}
    convert = VideoReformatter()  # one for all frames: a new one for each takes longer than decoding small pictures
    with _opened(path) as (container, stream):
        for name, frame in _frames_from(container, stream, first, scan):
            if name in needed and not frame.is_corrupt:
                found[name] = _upright(frame, convert)
            if name >= last:
                break
    absent = [int(i) for i, name in zip(wanted, names, strict=True) if int(name) not in found]
    if absent:
        raise VideoError(path, f"ends or is damaged before frame {min(absent)} of {scan.info.frames}")
    if len({picture.shape for picture in found.values()}) > 1:
        raise VideoError(path, "has pictures of several sizes")
    return np.stack([found[name] for name in names.tolist()])


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
