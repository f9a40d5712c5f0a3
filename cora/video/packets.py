"""One pass over the packets of a video file: which frames there are, when they are shown, where decoding may begin.

Beside codec.py, which decodes by what is found here, the only file that knows PyAV.
"""

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import av
import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.reformatter import VideoReformatter
from av.video.stream import VideoStream
from jaxtyping import Int, UInt8

from cora.video.bitstream import begins, intact, renews
from cora.video.promise import Packet, VideoError, VideoInfo, check_packets, clock, leading_pictures, put_end_to_end
from cora.video.still import turn_of_still
from cora.video.structure import check_structure
from cora.video.upright import AS_STORED, Turn, turn_of, turned

SEEKABLE = ("mp4", "matroska")
"""Containers whose timestamps name frames; in every other the frames are counted from the first."""
FORMATS = """
mov matroska webm avi flv live_flv asf asf_o mpegts mpeg mpegvideo m4v h261 h263 h264 hevc av1 obu ivf vc1 mjpeg dirac
ogg nut nuv mxf rm dv swf wtv yuv4mpegpipe roq smk bink flic gif gif_pipe apng image2 jpeg_pipe jpegls_pipe jpegxl_pipe
jpegxl_anim j2k_pipe png_pipe webp webp_pipe bmp_pipe tiff_pipe ppm_pipe pgm_pipe pbm_pipe pam_pipe qoi_pipe sgi_pipe
mp3 wav w64 flac aac ac3 aiff amr au caf ape tta wv
""".split()
"""What is ever opened: files that hold films, pictures or sound themselves. Others name files or addresses that FFmpeg
would read in their stead (ffconcat, playlists, sdp)."""
PLAIN = {"pattern_type": "none", "format_whitelist": ",".join(FORMATS), "protocol_whitelist": "file"}
"""A path names one file: "%d" in the name of a picture stands for no series of them."""


STRICT = {"err_detect": "explode+bitstream+buffer+crccheck"}
"""A decoder that finds a fault is to say so, not to mend it."""


class Scan(NamedTuple):
    """One pass over the packets: the promise, whose it is, and when frames and those to begin with are shown."""

    info: VideoInfo
    track: int
    """Index of the stream that is read."""
    stamps: Int[np.ndarray, "frames"] | None
    """Presentation time of every frame, ascending; None where frames must be counted."""
    keys: Int[np.ndarray, "keys"]
    """Presentation time of every frame with which decoding may begin."""
    by_decord: bool
    """Whether decord reads it to the same pixels, and has nothing to mend in it that a look at its packets finds."""
    turn: Turn | None = None
    """How the picture of a still is turned; None: every picture of a film says it itself."""


def scan(path: Path) -> Scan:
    """Returns what one pass over the packets tells. Raises VideoError for a file that holds no video that opens."""
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
def opened(
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
            # H.264 marks by itself what it mended, and would take a camera's strange notes beside pictures for faults.
            if stream.codec_context.codec.canonical_name != "h264":
                stream.codec_context.options = STRICT
            yield container, stream
    except av.ArgumentError as error:
        raise VideoError(path, "cannot be decoded: of no format that is read, perhaps a list of other files") from error
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
def _scan_version(path: Path, size: int, mtime_ns: int) -> Scan:
    """Scans the file as it stands: size and time of change are there to make the cache forget an older version."""
    with opened(path) as (container, stream):
        packets, picture, steady = _packets(container, stream)
        plain = steady and container.format.name.startswith("mov") and len(container.streams.video) == 1
        promised, track, tick = stream.frames, stream.index, Fraction(stream.time_base or 1)
        timed = any(one in container.format.name for one in SEEKABLE) and all(p.pts is not None for p in packets)
        rates = [float(rate) for rate in (stream.average_rate, stream.base_rate, stream.guessed_rate) if rate]
        codec = stream.codec_context.codec.canonical_name
        name, number = container.format.name, stream.id
    check_structure(path, name, number)
    broken = any(p.corrupt for p in packets)
    if broken and name == "mpegts" and put_end_to_end(path.read_bytes()) and _sound(path, track):
        packets = [p._replace(corrupt=False) for p in packets]
    check_packets(path, packets)
    if picture is None:
        raise VideoError(path, "has no picture that can be decoded")
    turn = turn_of_still(path) if name == "gif" or name.endswith("_pipe") else None
    height, width = upright(picture, VideoReformatter(), turn).shape[:2]
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
        return Scan(info, track, None, keys[:0], False, turn)
    whole = all(p.key == p.begins and not p.discard for p in packets) and not leading_pictures(packets)
    # decord turns by some words of the container, and mirrors by none.
    simple = picture.format.name == "yuv420p" and not picture.interlaced_frame and _turn(picture) == AS_STORED
    return Scan(info, track, stamps, keys, plain and whole and simple, turn)


def _packets(container: InputContainer, stream: VideoStream) -> tuple[list[Packet], av.VideoFrame | None, bool]:
    """Returns all packets, the first picture (only pictures tell how a film is rotated), and whether no packet brings
    settings by which later pictures could differ."""
    packets: list[Packet] = []
    picture, steady = None, True
    every = stream.codec_context.codec.intra_only
    setup = stream.codec_context.codec.canonical_name, stream.codec_context.extradata or b""
    first, whole, renew = begins(*setup), intact(*setup), renews(*setup)
    for packet in container.demux(stream):
        if packet.size:
            key = packet.is_keyframe
            steady = steady and not packet.has_sidedata("new_extradata") and not (key and renew(bytes(packet)))
            begin = key and (every or (first is not None and first(bytes(packet))))
            broken = packet.is_corrupt or (whole is not None and not whole(bytes(packet)))
            packets.append(Packet(packet.pts, key, begin, packet.is_discard, broken))
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
    try:
        with opened(path, track) as (container, stream):
            stream.codec_context.options = STRICT
            held = sum(1 for packet in container.demux(stream) if packet.size)
        with opened(path, track) as (container, stream):
            stream.codec_context.options = STRICT
            frames = [frame.is_corrupt for frame in container.decode(stream)]
    except VideoError:
        return False
    return len(frames) == held and not any(frames)


def _check_samples(path: Path, track: int, promised: int) -> None:
    """Raises VideoError if packets are missing from the file, not merely left out by its list of edits."""
    with opened(path, track, {"ignore_editlist": "1"}) as (container, stream):
        held = len(_packets(container, stream)[0])
    if held < promised:
        raise VideoError(path, f"is truncated: holds {held} of {promised} frames")


def _counted(path: Path, track: int, promised: int) -> list[int | None]:
    """Returns when each frame is shown, by decoding everything, for AVI and MPEG-TS hold packets that are no frames.

    Two frames may be missing: streams with packed B-frames end in placeholders that are counted and never shown.
    """
    with opened(path, track) as (container, stream):
        times = [frame.pts for frame in container.decode(stream)]
    if not times:
        raise VideoError(path, "has no frames")
    if len(times) < promised - 2:
        raise VideoError(path, f"is truncated or damaged: gives {len(times)} of {promised} frames")
    return times


# ------------------------------------------------------------------------------------------------- pictures


def upright(frame: av.VideoFrame, convert: VideoReformatter, turn: Turn | None) -> UInt8[np.ndarray, "H W 3"]:
    """Returns the picture in RGB, turned as its file says it is to be shown; `turn` overrules what the frame says."""
    return turned(convert.reformat(frame, format="rgb24").to_ndarray(), _turn(frame) if turn is None else turn)


def _turn(frame: av.VideoFrame) -> Turn:
    try:
        beside: Any = frame.side_data  # whose annotation is wrong
        matrix = next((bytes(data) for data in beside if data.type.name == "DISPLAYMATRIX"), None)
    except ValueError:  # something beside it that PyAV has no name for: then what it says of the angle alone
        return {1: Turn(True, down=True), 2: Turn(False, True, True), 3: Turn(True, across=True)}.get(
            round(frame.rotation / 90) % 4, AS_STORED)
    return AS_STORED if matrix is None else turn_of(matrix)
