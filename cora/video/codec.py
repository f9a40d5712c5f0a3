"""Video files: what is in one, its exact frames, and how one is written.

The only file that knows decord and PyAV. It knows nothing of clips, labels or crops, and it never guesses: either the
very frames that were asked for come back, or VideoError says why not.

Every way to a frame gives equal pixels, so decord reads only what it is sure to read as PyAV does: 8-bit H.264 in mp4,
one track, progressive, whose settings never change and whose key frames are all whole and shown first. It cannot be
told which track to read, blends the fields of interlaced pictures, rescales pictures that change size, and is wrong in
open groups of pictures, HEVC, AVI and MPEG-TS. A pass over the packets of a file tells these apart, and says which
frames there are, when they are shown and where decoding may begin. What it cannot tell: packets that vanished from a
truncated or damaged Matroska file, which keeps no count of them; the frames after the gap then have lower numbers.
"""

import os
from collections import Counter
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
from av.packet import Packet as Piece
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Int, UInt8

from cora.video.bitstream import begins, renews
from cora.video.promise import Packet, VideoError, VideoInfo, check_packets, clock, leading_pictures, put_end_to_end

decord.logging.set_level(decord.logging.QUIET)

SEEKABLE = ("mp4", "matroska")
"""Containers whose timestamps name frames; in every other the frames are counted from the first."""
PLAIN = {"pattern_type": "none"}
"""A path names one file: "%d" in the name of a picture stands for no series of them."""
AT_ONCE = 2**26
"""Bytes of pictures in one block of a stream."""
LATE = 16
"""By so many pictures a decoder may hand one out too late: no codec's delay is longer."""


class _Scan(NamedTuple):
    """One pass over the packets: the promise, whose it is, and when frames and those to begin with are shown."""

    info: VideoInfo
    track: int
    """Index of the stream that is read."""
    stamps: Int[np.ndarray, "frames"] | None
    """Presentation time of every frame, ascending; None where frames must be counted."""
    keys: Int[np.ndarray, "keys"]
    """Presentation time of every frame with which decoding may begin."""
    by_decord: bool


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
def _opened(
    path: Path, track: int | None = None, options: dict[str, str] | None = None
) -> Iterator[tuple[InputContainer, VideoStream]]:
    """Opens the file and its film, the `track` if that is known; what PyAV or the disk has against it: VideoError."""
    try:
        with av.open(str(path.absolute()), options=PLAIN | (options or {}), metadata_errors="replace") as container:
            stream = container.streams[_film(path, container) if track is None else track]
            assert isinstance(stream, VideoStream)
            if stream.codec_context is None:
                raise VideoError(path, "has a codec that nothing here decodes")
            stream.codec_context.thread_count = 1  # clips are decoded side by side already
            yield container, stream
    except (av.FFmpegError, OSError) as error:
        raise VideoError(path, f"cannot be decoded ({error.strerror or error})".lower()) from error


def _film(path: Path, container: InputContainer) -> int:
    """Returns the index of the track that is meant: never a cover, then FFmpeg's best, which heeds default flags."""
    tracks = [track for track in container.streams.video if not track.disposition & Disposition.attached_pic]
    if not tracks:
        raise VideoError(path, "has no video stream" + (" but a cover" if container.streams.video else ""))
    if len(tracks) == 1:
        return tracks[0].index
    with av.open(str(path.absolute()), options=PLAIN, metadata_errors="replace") as other:
        pictures = Counter(packet.stream_index for packet in other.demux(
            [other.streams[track.index] for track in tracks]) if packet.size)
    best = container.streams.best("video")
    # A track of one picture beside a film is a cover that the container could not mark as one.
    return max(tracks, key=lambda track: (track.codec_context is not None, pictures[track.index] > 1,
                                          track is best, -track.index)).index


@lru_cache(maxsize=2048)
def _scan_version(path: Path, size: int, mtime_ns: int) -> _Scan:
    """Scans the file as it stands: size and time of change are there to make the cache forget an older version."""
    with _opened(path) as (container, stream):
        packets, picture, steady = _packets(container, stream)
        plain = steady and container.format.name.startswith("mov") and len(container.streams.video) == 1
        promised, track, tick = stream.frames, stream.index, Fraction(stream.time_base or 1)
        timed = any(name in container.format.name for name in SEEKABLE) and all(p.pts is not None for p in packets)
        rates = [float(rate) for rate in (stream.average_rate, stream.base_rate, stream.guessed_rate) if rate]
        codec = stream.codec_context.codec.canonical_name
        joined = container.format.name == "mpegts"
    if joined and any(p.corrupt for p in packets) and put_end_to_end(path.read_bytes()) and _sound(path, track):
        packets = [p._replace(corrupt=False) for p in packets]
    check_packets(path, packets)
    if picture is None:
        raise VideoError(path, "has no picture that can be decoded")
    height, width = _upright(picture, VideoReformatter()).shape[:2]
    keys = np.sort(np.array([p.pts for p in packets if p.begins] if timed else [], np.int64))
    # What is shown before the first key frame belongs to pictures that were cut off.
    shown = [p.pts for p in packets if timed and not p.discard and p.pts >= keys[0]]
    stamps = np.unique(np.array(shown, np.int64))
    timed = timed and len(stamps) == len(shown)  # else a stamp names more than one frame
    if timed and len(packets) < promised:
        _check_samples(path, track, promised)
    times = stamps.tolist() if timed else _counted(path, track, promised)
    rate, uneven = clock(path, rates, times, tick)
    info = VideoInfo(len(times), rate, height, width, codec, uneven)
    if not timed:
        return _Scan(info, track, None, keys[:0], False)
    whole = all(p.key == p.begins and not p.discard for p in packets) and not leading_pictures(packets)
    simple = picture.format.name == "yuv420p" and not picture.interlaced_frame
    return _Scan(info, track, stamps, keys, plain and whole and simple)


def _packets(container: InputContainer, stream: VideoStream) -> tuple[list[Packet], av.VideoFrame | None, bool]:
    """Returns all packets, the first picture (only pictures tell how a film is rotated), and whether no packet brings
    settings by which later pictures could differ."""
    packets: list[Packet] = []
    picture, steady = None, True
    every = stream.codec_context.codec.intra_only
    setup = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
    first, renew = begins(*setup), renews(*setup)
    for packet in container.demux(stream):
        if packet.size:
            key = packet.is_keyframe
            steady = steady and not packet.has_sidedata("new_extradata") and not (key and renew(bytes(packet)))
            begin = key and (every or (first is not None and first(bytes(packet))))
            packets.append(Packet(packet.pts, key, begin, packet.is_discard, packet.is_corrupt))
        if picture is None and any(p.key for p in packets):
            picture = next(iter(packet.decode()), None)
    if not any(p.begins for p in packets):  # nothing can tell, or nothing is whole: all is decoded from the first key
        place = next((i for i, p in enumerate(packets) if p.key), None)
        if place is not None:
            packets[place] = packets[place]._replace(begins=True)
    return packets, picture, steady


def _sound(path: Path, track: int) -> bool:
    """Returns whether a strict decoder finds no fault, although the container misses something between its packets.

    Where two transport streams were put end to end, their counters leap and nothing is lost.
    """
    strict = {"err_detect": "explode+bitstream+buffer"}
    try:
        with _opened(path, track) as (container, stream):
            stream.codec_context.options = strict
            held = sum(1 for packet in container.demux(stream) if packet.size)
        with _opened(path, track) as (container, stream):
            stream.codec_context.options = strict
            frames = [frame.is_corrupt for frame in container.decode(stream)]
    except VideoError:
        return False
    return len(frames) == held and not any(frames)


def _check_samples(path: Path, track: int, promised: int) -> None:
    """Raises VideoError if packets are missing from the file, not merely left out by its list of edits."""
    with _opened(path, track, {"ignore_editlist": "1"}) as (container, stream):
        held = len(_packets(container, stream)[0])
    if held < promised:
        raise VideoError(path, f"is truncated: holds {held} of {promised} frames")


def _counted(path: Path, track: int, promised: int) -> list[int | None]:
    """Returns when each frame is shown, by decoding everything, for AVI and MPEG-TS hold packets that are no frames.

    Two frames may be missing: streams with packed B-frames end in placeholders that are counted and never shown.
    """
    with _opened(path, track) as (container, stream):
        times = [frame.pts for frame in container.decode(stream)]
    if not times:
        raise VideoError(path, "has no frames")
    if len(times) < promised - 2:
        raise VideoError(path, f"is truncated or damaged: gives {len(times)} of {promised} frames")
    return times


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


def _pictures(path: Path, frames: Int[np.ndarray, "T"], scan: _Scan) -> Iterator[UInt8[np.ndarray, "H W 3"]]:
    """Yields the frames of these ascending numbers, and leaps over groups of pictures without any of them."""
    names = frames if scan.stamps is None else scan.stamps[frames]
    groups = np.searchsorted(scan.keys, names, side="right")
    convert = VideoReformatter()  # one for all frames: a new one for each takes longer than decoding small pictures
    numbers = iter(frames.tolist())
    with _opened(path, scan.track) as (container, stream):
        for run in np.split(names, np.flatnonzero(np.diff(groups) > 1) + 1) if len(names) else ():
            for frame in _ordered(run.tolist(), _frames_from(container, stream, int(run[0]), scan)):
                number = next(numbers)
                if frame is None:
                    raise VideoError(path, f"ends or is damaged before frame {number} of {scan.info.frames}")
                yield _promised(path, _upright(frame, convert), scan.info)


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
