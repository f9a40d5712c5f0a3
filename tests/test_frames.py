"""Which film of a file is read, where its decoding begins, and when its frames are shown: alike by every way.

What is meant comes from plain PyAV, decoding the one track from its first packet to its last.
"""

import inspect
import struct
from fractions import Fraction
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import av
import numpy as np
import pytest
from PIL import Image, ImageOps

from cora.config import Corpus
from cora.video import codec, pack
from cora.video.clips import _numbers, views

FAST = {"preset": "ultrafast"}
REFRESH = {"preset": "medium", "x264-params": "intra-refresh=1:keyint=20:bframes=0:ref=1"}


def moving(count: int, height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
    large = np.random.default_rng(seed).integers(0, 256, (height // 8 + 9, width // 8 + count, 3), np.uint8)
    large = large.repeat(8, 0).repeat(8, 1)
    return np.stack([large[i % 64 : i % 64 + height, 3 * i : 3 * i + width] for i in range(count)])


def write(path: Path, *tracks: tuple, stamps=None, rate=Fraction(25)) -> Path:
    """Writes tracks of (codec, pictures, options, disposition); `stamps` in ms, or `rate` frames a second."""
    with av.open(str(path), "w") as out:
        made = []
        for name, video, options, disposition in tracks:
            stream = out.add_stream(name, rate=rate, options=options)
            stream.height, stream.width = video.shape[1:3]
            stream.pix_fmt = "yuvj420p" if name == "mjpeg" else "yuv420p"
            stream.disposition = disposition
            if stamps is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            made.append(stream)
        for stream, (_, video, _, _) in zip(made, tracks, strict=True):
            for place, picture in enumerate(video):
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                if stamps is not None:
                    frame.pts, frame.time_base = stamps[place], Fraction(1, 1000)
                out.mux(stream.encode(frame))
            out.mux(stream.encode(None))
    return path


def sequential(path: Path, track: int = 0) -> np.ndarray:
    with av.open(str(path)) as container:
        frames = container.decode(container.streams[track])
        return np.stack([frame.to_ndarray(format="rgb24") for frame in frames])


def assert_every_way(path: Path, meant: np.ndarray, folder: Path) -> None:
    count = codec.inspect(path).frames
    assert count == len(meant)
    packed = pack.unpack(pack.pack([path], folder / "packs", 10**4))(0).read(np.arange(count))
    np.testing.assert_array_equal(packed, meant)
    np.testing.assert_array_equal(np.concatenate(list(codec.stream(path, np.arange(count)))), meant)
    for first in range(0, max(1, count - 4), 3):
        asked = np.arange(first, min(first + 4, count))
        np.testing.assert_array_equal(codec.read(path, asked), meant[asked])
    corpus = Corpus(crop_aspect=(0.1, 10.0))
    seen = views(path, corpus, frames=min(2, count), size=meant.shape[1:3], count=1)[0]
    start = (count - min(2, count) + 1) // 2
    np.testing.assert_array_equal(seen, meant[start : start + min(2, count)])


DEFAULT, NONE, COVER = av.stream.Disposition.default, av.stream.Disposition(0), av.stream.Disposition.attached_pic


@pytest.mark.parametrize("name", ["a.mp4", "a.mov", "a.mkv"])
def test_of_two_tracks_the_default_one_is_read_by_every_way(tmp_path, name):
    small, large = moving(9, 32, 32), moving(12, 64, 64, 1)
    for place, (first, second) in enumerate([(NONE, DEFAULT), (DEFAULT, NONE)]):
        path = write(tmp_path / f"{place}{name}", ("libx264", large, FAST, first), ("libx264", small, FAST, second))
        assert_every_way(path, sequential(path, 1 - place), tmp_path / str(place))


@pytest.mark.parametrize("flags", [(NONE, NONE), (DEFAULT, NONE), (COVER, NONE)])
@pytest.mark.parametrize("name", ["a.mkv", "a.mp4"])
def test_a_cover_is_never_the_film(tmp_path, name, flags):
    cover, film = moving(1, 64, 64), moving(9, 32, 32, 1)
    path = write(tmp_path / name, ("mjpeg", cover, {}, flags[0]), ("libx264", film, FAST, flags[1]))
    with av.open(str(path)) as container:
        track = next(s.index for s in container.streams.video if s.codec_context.name == "h264")
    assert_every_way(path, sequential(path, track), tmp_path)


def test_music_with_a_cover_is_no_video(tmp_path):
    with av.open(str(tmp_path / "a.mp3"), "w") as out:
        music = out.add_stream("mp3", rate=44100)
        picture = out.add_stream("mjpeg", rate=1)
        picture.width = picture.height = 32
        picture.pix_fmt, picture.disposition = "yuvj420p", COVER
        still = av.VideoFrame.from_ndarray(moving(1, 32, 32)[0], format="rgb24")
        out.mux([*picture.encode(still), *picture.encode(None)])
        tone = av.AudioFrame.from_ndarray(np.zeros((1, 1152), np.int16), format="s16p", layout="mono")
        tone.sample_rate = 44100
        out.mux([*music.encode(tone), *music.encode(None)])
    with pytest.raises(codec.VideoError, match="no video stream but a cover"):
        codec.inspect(tmp_path / "a.mp3")


@pytest.mark.parametrize(("name", "kind", "options"), [
    ("a.mp4", "libx264", {"x264-params": "tff=1"}),
    ("a.mkv", "mpeg4", {"flags": "+ildct+ilme"}),
    ("a.ts", "mpeg2video", {"flags": "+ildct+ilme"}),
    ("a.mp4", "libx264", REFRESH),
    ("a.mkv", "libx264", REFRESH),
    ("a.mp4", "libx265", {"x265-params": "keyint=12:log-level=none"}),
    ("a.webm", "libvpx", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
    ("a.webm", "libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
    ("a.mp4", "libsvtav1", {"preset": "13", "svtav1-params": "keyint=12"}),
    ("a.mkv", "mpeg2video", {"g": "12", "bf": "2"}),
    ("a.mkv", "ffv1", {}), ("a.avi", "mjpeg", {}), ("a.flv", "flv", {}), ("a.wmv", "wmv2", {})])
def test_every_way_to_a_frame_gives_equal_pixels(tmp_path, name, kind, options):
    path = write(tmp_path / name, (kind, moving(50), options, DEFAULT))
    assert_every_way(path, sequential(path), tmp_path)


def test_a_film_that_marks_every_picture_a_key_begins_where_its_codec_does(tmp_path):
    path = write(tmp_path / "a.mp4", ("libx264", moving(40), {"g": "12", "preset": "medium"}, DEFAULT))
    meant, data = sequential(path), path.read_bytes()
    assert data.count(b"stss") == 1
    path.write_bytes(data.replace(b"stss", b"free"))
    assert_every_way(path, meant, tmp_path)


def test_a_seek_that_lands_too_late_is_tried_from_further_back():
    class Late:
        """A container that lands three packets after the one that is asked for, if it can."""

        time_base = Fraction(1, 10)

        def seek(self, target, stream):
            self.place = max(0, target + 3) if target >= 0 else 0

        def demux(self, stream):
            return (SimpleNamespace(pts=pts) for pts in [*range(self.place, 40), None])

    packets_from = inspect.unwrap(codec._packets_from)  # without the check of its arguments' types
    for key in (0, 12, 39):
        assert [packet.pts for packet in packets_from(Late(), Late(), key)] == [*range(key, 40), None]


def test_pictures_that_change_size_are_refused_by_every_way(tmp_path):
    """As a call's recording does it: the next key frame is smaller."""
    quick = {"deadline": "realtime", "cpu-used": "8", "auto-alt-ref": "0", "lag-in-frames": "0"}
    parts = [write(tmp_path / f"{side}.webm", ("libvpx", moving(12, side, side), quick, DEFAULT)) for side in (64, 48)]
    path = tmp_path / "a.webm"
    with av.open(str(path), "w") as out, av.open(str(parts[0])) as large, av.open(str(parts[1])) as small:
        stream = out.add_stream_from_template(large.streams.video[0])
        for part, source in enumerate((large, small)):
            for packet in [packet for packet in source.demux(source.streams.video[0]) if packet.size]:
                packet.pts = packet.dts = packet.pts + 480 * part
                packet.stream = stream
                out.mux(packet)
    assert codec.inspect(path).frames == 24
    np.testing.assert_array_equal(codec.read(path, np.arange(12)), sequential(parts[0]))
    for way in (codec.read, lambda *given: list(codec.stream(*given))):
        with pytest.raises(codec.VideoError, match=r"has pictures of \(48, 48\) where"):
            way(path, np.arange(10, 16))


# ------------------------------------------------------------------------------------------------- which way up

QUARTERS = [(1, 0, 0, 1), (-1, 0, 0, 1), (-1, 0, 0, -1), (1, 0, 0, -1), (0, 1, 1, 0), (0, 1, -1, 0), (0, -1, -1, 0),
            (0, -1, 1, 0)]
"""(a, b, c, d): a point (x, y) is shown at (a x + c y, b x + d y). In the order of EXIF's orientations."""


def shown_at(pictures: np.ndarray, a: int, b: int, c: int, d: int) -> np.ndarray:
    """Every pixel put where the matrix says, one by one."""
    height, width = pictures.shape[1:3]
    places = {(y, x): (b * x + d * y, a * x + c * y) for y in range(height) for x in range(width)}
    top, left = (min(place[axis] for place in places.values()) for axis in (0, 1))
    sides = (height, width) if a else (width, height)
    out = np.zeros((len(pictures), *sides, 3), np.uint8)
    for (y, x), (row, column) in places.items():
        out[:, row - top, column - left] = pictures[:, y, x]
    return out


@pytest.mark.parametrize("slant", [0.0, 0.3])
@pytest.mark.parametrize("matrix", QUARTERS)
def test_a_film_is_turned_and_mirrored_as_its_display_matrix_says(tmp_path, matrix, slant):
    path = write(tmp_path / "a.mp4", ("libx264", moving(6, 32, 64), FAST, DEFAULT))
    meant, data = shown_at(sequential(path), *matrix), bytearray(path.read_bytes())
    a, b, c, d = matrix
    a, b, c, d = (round(65536 * (x + slant * y)) for x, y in ((a, -b), (b, a), (c, -d), (d, c)))
    place = data.index(b"tkhd") + 44
    data[place : place + 36] = struct.pack(">9i", a, b, 0, c, d, 0, 0, 0, 1 << 30)
    path.write_bytes(data)
    assert_every_way(path, meant, tmp_path)


@pytest.mark.parametrize("ending", ["jpg", "png", "webp"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_still_is_turned_and_mirrored_as_its_exif_says(tmp_path, orientation, ending):
    """What is meant comes from Pillow."""
    path, exif = tmp_path / f"a.{ending}", Image.Exif()
    exif[274] = orientation
    Image.fromarray(moving(1, 48, 80)[0]).save(path, exif=exif, quality=95, subsampling=0, lossless=True)
    with Image.open(path) as stored:
        meant = np.asarray(ImageOps.exif_transpose(stored).convert("RGB"))[None]
    assert_every_way(path, meant, tmp_path)


def test_pixels_that_are_not_square_stay_as_they_are_stored(tmp_path):
    path = tmp_path / "a.mp4"
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=25, options=FAST)
        stream.height, stream.width, stream.pix_fmt = 48, 64, "yuv420p"
        stream.codec_context.sample_aspect_ratio = Fraction(2, 1)
        for picture in moving(9, 48, 64):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        out.mux(stream.encode(None))
    with av.open(str(path)) as container:
        assert container.streams[0].sample_aspect_ratio == 2
    assert_every_way(path, sequential(path), tmp_path)
    assert codec.inspect(path)[2:4] == (48, 64)


# ------------------------------------------------------------------------------------------------- time

THIRTIETHS = np.cumsum([0, *np.random.default_rng(0).choice([1, 1, 2, 5], 39)])
SCREEN = np.cumsum([0, *([40] * 19), 8000, *([40] * 19)])
RATES = {"13.5": np.rint(np.arange(40) * 1000 / 13.5), "29.97": None, "gap": SCREEN,
         "dropped": np.rint(THIRTIETHS * 1000 / 30)}


@pytest.mark.parametrize("name", RATES)
def test_the_same_frames_are_the_same_clip_in_every_container(tmp_path, name):
    """The header says 25 a second, but for 29.97, which whole milliseconds would not tell from 30."""
    stamps = None if RATES[name] is None else RATES[name].astype(int).tolist()
    rate = Fraction(30000, 1001) if stamps is None else Fraction(25)
    video, infos = moving(40, 32, 32), []
    for ending in ("mp4", "mkv", "ts", "flv", "webm"):
        track = ("libvpx-vp9", video, {"deadline": "realtime", "cpu-used": "8"}, DEFAULT)
        track = track if ending == "webm" else ("libx264", video, FAST, DEFAULT)
        infos.append(codec.inspect(write(tmp_path / f"a.{ending}", track, stamps=stamps, rate=rate)))
    assert {info.times for info in infos} == {() if name in ("13.5", "29.97") else tuple(stamps)}
    meant = {"13.5": 13.5, "29.97": float(rate)}.get(name) or 39_000 / stamps[-1]
    np.testing.assert_allclose([info.fps for info in infos], meant, rtol=1e-3)
    for corpus in (Corpus(sampling="fps", fps=4.0), Corpus(sampling="span", longest=2.0)):
        found = [_numbers(info, corpus, 8, place, 1.0).tolist() for info in infos for place in (0.0, 0.5)]
        assert found[::2] == found[:1] * 5 and found[1::2] == found[1:2] * 5


def test_frames_are_those_shown_at_the_times_asked_for():
    """Every place, against a walk along the stamps."""
    spaced = [{"sampling": "fps", "fps": 4.0}, {"sampling": "span", "longest": 2.0}]  # both .25 s apart
    for stamps, fields, place in product((SCREEN, 125 * THIRTIETHS, 50 * THIRTIETHS), spaced, np.linspace(0, 0.99, 7)):
        info, step = codec.VideoInfo(40, 39_000 / stamps[-1], 8, 8, "", tuple(stamps.tolist())), 0.25
        length = 40 / info.fps
        start = place * (length - 7 * step)
        meant = [max(n for n in range(40) if info.times[n] / 1000 <= start + t * step + 1e-8) for t in range(8)]
        assert _numbers(info, Corpus(**fields), 8, place, 1.0).tolist() == meant


def test_a_pack_keeps_the_times(tmp_path):
    path = write(tmp_path / "a.mp4", ("libx264", moving(40, 32, 32), FAST, DEFAULT), stamps=SCREEN.tolist())
    assert pack.unpack(pack.pack([path], tmp_path / "packs", 32))(0).info == codec.inspect(path)


def test_transport_streams_put_end_to_end_are_one_film_and_a_gap_is_none(tmp_path):
    first, second = (write(tmp_path / f"{seed}.ts", ("libx264", moving(20, 48, 48, seed), FAST, DEFAULT))
                     for seed in (0, 1))
    path = tmp_path / "a.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    assert_every_way(path, np.concatenate([sequential(first), sequential(second)]), tmp_path)
    assert codec.inspect(path)[1:] == (25.0, 48, 48, "h264", ())
    data = first.read_bytes()
    for lost in range(len(data) // 188 // 2, len(data) // 188 - 4):
        path.write_bytes(data[: 188 * lost] + data[188 * (lost + 1) :])
        if data[188 * lost + 1] & 31 == 1:  # the film's packets
            with pytest.raises(codec.VideoError):
                codec.inspect(path)
