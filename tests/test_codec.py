"""Exact frames out of every kind of file, and a reason for every file that has none.

Every frame wears its own number as eight bright or dark bars, so that what was read can be told from what was asked.
"""

import os
import pickle
import struct
import sys
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cora.video import codec

COUNT = 40


def numbered(count: int, height: int = 32, width: int = 64) -> np.ndarray:
    bits = np.arange(count)[:, None] >> np.arange(8) & 1
    bars = np.where(bits, 200, 50).astype(np.uint8)
    return np.broadcast_to(bars.repeat(width // 8, 1)[:, None, :, None], (count, height, width, 3)).copy()


def numbers(video: np.ndarray) -> list[int]:
    bars = video.reshape(len(video), video.shape[1], 8, -1).mean((1, 3)) > 125
    return (bars << np.arange(8)).sum(1).tolist()


def encode(
    path: Path, container: str, name: str, options: dict[str, str], pix_fmt: str = "yuv420p",
    video: np.ndarray | None = None,
) -> Path:
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(name, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 32, pix_fmt
        for picture in numbered(COUNT) if video is None else video:
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    return path


X264 = {"preset": "medium", "g": "12", "sc_threshold": "0"}
OPEN = X264 | {"x264-params": "open-gop=1:bframes=3:keyint=12:scenecut=0"}
KINDS = {
    "h264.mp4": ("mp4", "libx264", X264),
    "h264.mkv": ("matroska", "libx264", X264),
    "vp9.webm": ("webm", "libvpx-vp9", {"g": "12", "deadline": "realtime", "cpu-used": "8"}),
    "open_gop.mp4": ("mp4", "libx264", OPEN),
    "open_gop.mkv": ("matroska", "libx264", OPEN),
    "mpeg4_b.mp4": ("mp4", "mpeg4", {"g": "12", "bf": "2"}),
    "h264.avi": ("avi", "libx264", X264),
    "mpeg4_b.avi": ("avi", "mpeg4", {"g": "12", "bf": "2"}),
    "h264.ts": ("mpegts", "libx264", X264),
}
DRAWN = np.random.default_rng(0).integers(0, COUNT, 12)
ASKED = [np.arange(COUNT), np.arange(3, COUNT, 4), np.array([COUNT - 1]), np.array([20, 3, 20]), DRAWN]


@pytest.mark.parametrize("name", KINDS)
def test_the_frames_asked_for_are_the_frames_returned(tmp_path, name):
    path = encode(tmp_path / name, *KINDS[name])
    assert codec.inspect(path).frames == COUNT
    for asked in ASKED:
        assert numbers(codec.read(path, asked)) == asked.tolist()


@pytest.mark.parametrize("name", KINDS)
def test_a_stream_gives_what_reading_gives_a_few_pictures_at_a_time(tmp_path, monkeypatch, name):
    path = encode(tmp_path / name, *KINDS[name])
    monkeypatch.setattr(codec, "AT_ONCE", 3 * 32 * 64 * 3 + 1)
    for asked in (np.arange(COUNT), np.arange(3, COUNT, 4), np.array([1, 2, 25, COUNT - 1])):
        blocks = list(codec.stream(path, asked))
        assert [len(block) for block in blocks[:-1]] == [3] * ((len(asked) - 1) // 3)
        np.testing.assert_array_equal(np.concatenate(blocks), codec.read(path, asked))


@pytest.mark.parametrize(("name", "asked", "decoded"), [
    *((name, np.arange(COUNT), COUNT) for name in ("h264.mp4", "h264.avi", "open_gop.mkv")),
    ("h264.mp4", np.array([1, 37]), 2 + 2)])
def test_a_stream_decodes_a_frame_once_and_leaps_where_nothing_is_wanted(tmp_path, monkeypatch, name, asked, decoded):
    path, count, through = encode(tmp_path / name, *KINDS[name]), [], codec._frames_from
    monkeypatch.setattr(codec, "AT_ONCE", 1)
    monkeypatch.setattr(codec, "_frames_from", lambda *given: (count.append(0) or pair for pair in through(*given)))
    assert numbers(np.concatenate(list(codec.stream(path, asked)))) == asked.tolist()
    assert len(count) == decoded


def test_frames_that_come_a_little_late_are_put_in_order():
    class Frame:
        is_corrupt = False

    frames = {name: Frame() for name in range(60)}
    late = sorted(frames, key=lambda name: name + 9 * (name % 8 == 0))
    names = [name for name in frames if name % 3 and name < 50]
    assert list(codec._ordered(names, ((name, frames[name]) for name in late))) == [frames[n] for n in names]


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are text")
def test_a_name_that_is_not_text_is_read_like_any_other(tmp_path):
    path = tmp_path / os.fsdecode(b"\xff\xe9.mp4")
    encode(tmp_path / "a.mp4", *KINDS["h264.mp4"]).rename(path)
    assert numbers(codec.read(path, np.array([30, 5]))) == [30, 5]


def test_a_title_that_is_not_text_and_an_unknown_codec_end_no_run(tmp_path):
    path = encode(tmp_path / "a.mp4", *KINDS["h264.mp4"])
    data = path.read_bytes()
    path.write_bytes(data.replace(b"VideoHandler", b"Video\xff\xfe\xefdler"))
    assert numbers(codec.read(path, np.array([3]))) == [3]
    path.write_bytes(data.replace(b"avc1", b"zzzz"))
    with pytest.raises(codec.VideoError, match="nothing here decodes"):
        codec.inspect(path)


def test_pictures_of_more_than_eight_bits_are_streamed_as_they_are_read(tmp_path):
    coloured = np.random.default_rng(0).integers(0, 256, (6, 8, 16, 3), np.uint8).repeat(4, 1).repeat(4, 2)
    path, asked = encode(tmp_path / "a.mp4", "mp4", "libx264", X264, "yuv420p10le", coloured), np.arange(6)
    np.testing.assert_array_equal(np.concatenate(list(codec.stream(path, asked))), codec.read(path, asked))


def test_a_rotated_film_comes_out_upright(tmp_path):
    path = encode(tmp_path / "a.mp4", *KINDS["h264.mp4"])
    data = bytearray(path.read_bytes())
    matrix = data.index(b"tkhd") + 44
    data[matrix : matrix + 36] = struct.pack(">9i", 0, 65536, 0, -65536, 0, 0, 32 << 16, 0, 1 << 30)
    path.write_bytes(data)
    assert codec.inspect(path)[2:4] == (64, 32)
    assert numbers(np.rot90(codec.read(path, np.array([5, 30])), 1, (1, 2))) == [5, 30]  # the matrix turns clockwise


def test_a_copy_cut_off_before_its_key_frame_holds_only_what_can_be_shown(tmp_path):
    whole = encode(tmp_path / "whole.mp4", "mp4", "libx264", X264 | {"bf": "0"})
    with av.open(str(whole)) as source, av.open(str(tmp_path / "cut.mp4"), "w", format="mp4") as out:
        stream = out.add_stream_from_template(source.streams.video[0])
        for place, packet in enumerate(source.demux(source.streams.video[0])):
            if packet.size and place >= 5:
                packet.stream = stream
                out.mux(packet)
    info = codec.inspect(tmp_path / "cut.mp4")
    assert numbers(codec.read(tmp_path / "cut.mp4", np.arange(info.frames))) == list(range(12, COUNT))


# ------------------------------------------------------------------------------------------------- files without frames


def no_frames(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        out.start_encoding()


def audio_only(path: Path) -> None:
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        sound.sample_rate = 44100
        out.mux(stream.encode(sound))
        out.mux(stream.encode(None))


def truncated(path: Path, movflags: dict[str, str], keep: float) -> None:
    whole = path.with_name("whole.mp4")
    with av.open(str(whole), "w", format="mp4", options=movflags) as out:
        stream = out.add_stream("libx264", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for picture in np.random.default_rng(0).integers(0, 256, (20, 32, 64, 3), np.uint8):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    data = whole.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])


def truncated_between_packets(path: Path) -> None:
    truncated(path, {"movflags": "faststart"}, 1.0)
    with av.open(str(path)) as container:
        third = [packet for packet in container.demux() if packet.size][3].pos
    path.write_bytes(path.read_bytes()[:third])


def overwritten(path: Path) -> None:
    encode(path, *KINDS[f"h264{path.suffix}"])
    data = bytearray(path.read_bytes())
    middle = len(data) // 2
    data[middle : middle + 1500] = np.random.default_rng(0).bytes(1500)
    path.write_bytes(data)


BROKEN = {
    "empty.mp4": (lambda p: p.write_bytes(b""), "is empty"),
    "text.mp4": (lambda p: p.write_text("not a video\n" * 99), "cannot be decoded"),
    "random.mp4": (lambda p: p.write_bytes(np.random.default_rng(0).bytes(5000)), "cannot be decoded"),
    "no_moov.mp4": (lambda p: truncated(p, {}, 0.5), "cannot be decoded"),
    "faststart.mp4": (lambda p: truncated(p, {"movflags": "faststart"}, 0.6), "truncated"),
    "between.mp4": (truncated_between_packets, "holds 3 of 20 frames"),
    "audio.mp4": (audio_only, "has no video stream"),
    "none.mp4": (no_frames, "has no frames|has no video stream|cannot be decoded"),
    "folder.mp4": (lambda p: p.mkdir(), ": is a directory"),
    "missing.mp4": (lambda p: None, "does not exist"),
    "middle.avi": (overwritten, "nothing known begins at byte"),
    "middle.ts": (overwritten, "nothing known begins at byte"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_an_unreadable_file_says_why(tmp_path, name):
    make, reason = BROKEN[name]
    make(tmp_path / name)
    for attempt in (codec.inspect, lambda path: codec.read(path, np.array([0]))):
        with pytest.raises(codec.VideoError, match=reason) as caught:
            attempt(tmp_path / name)
        assert caught.value.path == tmp_path / name and len(caught.value.reason) < 120


def test_damage_amid_the_pictures_is_not_passed_over(tmp_path):
    path = tmp_path / "a.mp4"
    codec.write(path, np.random.default_rng(0).integers(0, 256, (40, 32, 64, 3), np.uint8), 25.0)
    data = bytearray(path.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 3000] = np.random.default_rng(1).bytes(3000)
    path.write_bytes(data)
    with pytest.raises(codec.VideoError, match="is truncated or damaged: a packet is incomplete or impossible"):
        codec.read(path, np.arange(40))


def test_an_error_survives_pickling():
    error = pickle.loads(pickle.dumps(codec.VideoError(Path("a.mp4"), "is empty")))
    assert (error.path, error.reason) == (Path("a.mp4"), "is empty")


def test_a_frame_that_was_never_promised_is_the_callers_mistake(tmp_path):
    codec.write(tmp_path / "a.mp4", numbered(5), 25.0)
    for number in (5, -1):
        with pytest.raises(IndexError, match="legal: 0 to 4"):
            codec.read(tmp_path / "a.mp4", np.array([number]))


def test_a_changed_file_is_looked_at_again(tmp_path):
    for count in (5, 9):
        codec.write(tmp_path / "a.mp4", numbered(count), 25.0)
        assert codec.inspect(tmp_path / "a.mp4").frames == count


# ------------------------------------------------------------------------------------------------- writing


@pytest.mark.parametrize("count", [1, 30])
def test_what_is_written_is_read_back(tmp_path, count):
    video = numbered(count) // 2 + np.linspace(0, 120, 32, dtype=np.uint8)[:, None, None]
    codec.write(tmp_path / "a.mp4", video, 12.5)
    assert codec.inspect(tmp_path / "a.mp4") == (count, 12.5, 32, 64, "h264", ())
    back = codec.read(tmp_path / "a.mp4", np.arange(count))
    assert np.abs(back.astype(int) - video).mean() < 4


def test_equal_videos_are_equal_bytes_and_nothing_else_is_left(tmp_path):
    for name in ("a.mp4", "b.mp4"):
        codec.write(tmp_path / name, numbered(10), 25.0)
    assert (tmp_path / "a.mp4").read_bytes() == (tmp_path / "b.mp4").read_bytes()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.mp4", "b.mp4"]


def test_a_failed_write_leaves_the_old_file(tmp_path):
    codec.write(tmp_path / "a.mp4", numbered(10), 25.0)
    before = (tmp_path / "a.mp4").read_bytes()
    refused = (numbered(3, 31), 25.0, "32"), (numbered(3), 0.0, "positive"), (numbered(0), 25.0, "1, 32")
    for video, fps, legal in refused:
        with pytest.raises(ValueError, match=legal):
            codec.write(tmp_path / "a.mp4", video, fps)
    assert (tmp_path / "a.mp4").read_bytes() == before and len(list(tmp_path.iterdir())) == 1


def test_a_name_like_a_pattern_is_the_name_of_one_file(tmp_path):
    for name, grey in (("seq0.png", 20), ("seq1.png", 80), ("seq%d.png", 140)):
        Image.fromarray(np.full((16, 16, 3), grey, np.uint8)).save(tmp_path / name)
    assert codec.inspect(tmp_path / "seq%d.png").frames == 1
    assert (codec.read(tmp_path / "seq%d.png", np.array([0])) == 140).all()


@pytest.mark.parametrize(("name", "text"), [
    ("a.mp4", "ffconcat version 1.0\nfile 'film.ts'\n"), ("a.ffconcat", "ffconcat version 1.0\nfile film.ts\n"),
    ("a.m3u8", "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\nfilm.ts\n#EXT-X-ENDLIST\n"),
    ("a.sdp", "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 4567 RTP/AVP 96\n"
              "a=rtpmap:96 H264/90000\n")])
def test_a_text_that_names_a_film_is_no_film_and_the_film_is_not_opened(tmp_path, name, text):
    film = encode(tmp_path / "film.ts", *KINDS["h264.ts"])
    (tmp_path / name).write_text(text)
    if name != "a.sdp":
        with av.open(str(tmp_path / name)) as followed:  # as FFmpeg would
            assert followed.streams.video[0].codec_context.name == "h264"
    os.utime(film, ns=(0, film.stat().st_mtime_ns))  # the next reading of the file sets the time of reading
    with pytest.raises(codec.VideoError, match="cannot be decoded"):
        codec.inspect(tmp_path / name)
    assert film.stat().st_atime_ns == 0
    film.read_bytes()
    if film.stat().st_atime_ns == 0:
        pytest.skip("the disk keeps no times of reading")
