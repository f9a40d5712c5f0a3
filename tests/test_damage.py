"""Damage that a demuxer or decoder passes over: a file comes back as it was, or not at all.

What is meant comes from plain PyAV, out of the sound file, before anything is damaged.
"""

import os
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from cora.video import codec

QUICK = {"g": "12", "deadline": "realtime", "cpu-used": "8"}
X265 = {"x265-params": "keyint=12:pools=none:frame-threads=1:log-level=none"}
KINDS = {
    "h264.mp4": ("libx264", {"g": "12"}), "h264.mkv": ("libx264", {"g": "12"}), "h264.flv": ("libx264", {"g": "12"}),
    "h264.avi": ("libx264", {"g": "12"}), "hevc.mkv": ("libx265", X265), "hevc.mp4": ("libx265", X265),
    "vp9.webm": ("libvpx-vp9", QUICK),
    "av1.webm": ("libsvtav1", {"preset": "13", "svtav1-params": "keyint=12"}), "flv.flv": ("flv", {"g": "12"}),
    "av1.mkv": ("libsvtav1", {"preset": "13", "svtav1-params": "keyint=12"}), "wmv2.wmv": ("wmv2", {"g": "12"}),
    "mpeg4.avi": ("mpeg4", {"g": "12", "bf": "2"}), "mpeg4.mkv": ("mpeg4", {"g": "12"}), "gif.gif": ("gif", {}),
    "mpeg2.mpg": ("mpeg2video", {"g": "12"}), "mjpeg.avi": ("mjpeg", {}), "h264.ts": ("libx264", {"g": "12"}),
}


def moving(count: int, side: int = 64) -> np.ndarray:
    large = np.random.default_rng(0).integers(0, 256, (24, 24 + count, 3), np.uint8).repeat(8, 0).repeat(8, 1)
    return np.stack([large[i : i + side, 3 * i : 3 * i + side] for i in range(count)])


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Returns the bytes of a kind, and its frames."""
    folder, made = tmp_path_factory.mktemp("sound"), {}

    def get(name: str) -> tuple[bytes, np.ndarray]:
        if name not in made:
            path, (kind, options) = folder / name, KINDS[name]
            with av.open(str(path), "w") as out:
                stream = out.add_stream(kind, rate=25, options=options)
                stream.width = stream.height = 64
                stream.pix_fmt = {"mjpeg": "yuvj420p", "gif": "rgb8"}.get(kind, "yuv420p")
                for picture in moving(50):
                    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                    out.mux(stream.encode(frame.reformat(format=stream.pix_fmt)))
                out.mux(stream.encode(None))
            with av.open(str(path)) as container:
                frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])
            made[name] = path.read_bytes(), frames
        return made[name]

    return get


def refused(path: Path, meant: np.ndarray) -> bool:
    """Returns whether the file is refused; one that is not must hold exactly what was meant."""
    os.utime(path, ns=(0, hash(path.read_bytes()) % 10**15))  # each version is looked at anew
    try:
        video = codec.read(path, np.arange(codec.inspect(path).frames))
    except codec.VideoError:
        return True
    np.testing.assert_array_equal(video, meant)
    return False


@pytest.mark.parametrize("name", [name for name in KINDS if not name.endswith(".ts")])
@pytest.mark.parametrize("kept", [0.34, 0.8])
def test_a_film_that_is_cut_off_is_refused(tmp_path, sound, name, kept):
    data, meant = sound(name)
    (tmp_path / name).write_bytes(data[: int(kept * len(data))])
    assert refused(tmp_path / name, meant)


@pytest.mark.parametrize("name", ["h264.mkv", "av1.webm", "h264.flv", "gif.gif"])
def test_a_film_that_is_cut_off_between_two_pictures_is_refused(tmp_path, sound, name):
    data, meant = sound(name)
    (tmp_path / name).write_bytes(data)
    with av.open(str(tmp_path / name)) as container:
        places = [packet.pos for packet in container.demux() if packet.size]
    (tmp_path / name).write_bytes(data[: places[30]])
    assert refused(tmp_path / name, meant) or name.endswith("flv")


@pytest.mark.parametrize(("name", "zeros"), [
    *((name, zeros) for name in ("h264.mp4", "hevc.mp4", "h264.flv", "flv.flv", "h264.mkv", "hevc.mkv", "mpeg4.mkv",
                                 "h264.avi", "mpeg4.avi", "wmv2.wmv", "mpeg2.mpg", "av1.mkv") for zeros in (64, 700)),
    ("mjpeg.avi", 700), ("gif.gif", 700), ("av1.webm", 700)])
def test_of_a_film_with_bytes_made_zero_no_frame_is_lost_doubled_or_garbled(tmp_path, sound, name, zeros):
    data, meant = sound(name)
    places = np.random.default_rng(1).integers(len(data) // 5, len(data) * 9 // 10 - zeros, 8).tolist()
    found = []
    for place in places:
        (tmp_path / name).write_bytes(data[:place] + bytes(zeros) + data[place + zeros :])
        found.append(refused(tmp_path / name, meant))
    assert sum(found) >= 4  # the rest hit what is not of the film


def test_a_frame_of_a_damaged_film_does_not_depend_on_what_is_asked_beside_it(tmp_path, sound):
    """VP9 in WebM, where most damage cannot be known: what is given out is at least always the same."""
    data, _ = sound("vp9.webm")
    path, given = tmp_path / "a.webm", 0
    for place in range(len(data) // 3, len(data) * 9 // 10, len(data) // 9):
        path.write_bytes(data[:place] + bytes(9) + data[place + 9 :])
        os.utime(path, ns=(0, place))
        try:
            count = codec.inspect(path).frames
        except codec.VideoError:
            continue
        alone = []
        for number in range(count):
            try:
                alone.append(codec.read(path, np.array([number]))[0])
            except codec.VideoError:
                alone.append(None)
        for asked in (np.arange(count), np.arange(20, count), np.arange(3, count, 7)):
            try:
                together = codec.read(path, asked)
            except codec.VideoError:
                continue
            given += 1
            for number, picture in zip(asked, together, strict=True):
                np.testing.assert_array_equal(picture, alone[number])
    assert given


@pytest.mark.parametrize("ending", ["jpg", "png", "webp", "bmp", "gif"])
def test_a_picture_that_is_cut_off_is_refused(tmp_path, ending):
    path = tmp_path / f"a.{ending}"
    Image.fromarray(moving(1)[0]).save(path)
    assert codec.inspect(path).frames == 1
    data = path.read_bytes()
    for kept in (0.34, 0.7, 0.95):
        path.write_bytes(data[: int(kept * len(data))])
        with pytest.raises(codec.VideoError):
            codec.inspect(path)


def test_a_sum_over_a_cluster_tells_damage_that_no_decoder_would(tmp_path, sound):
    """One bit in the middle of a picture: FFmpeg writes sums into Matroska and heeds none."""
    data, meant = sound("h264.mkv")
    place = len(data) // 2
    (tmp_path / "a.mkv").write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    assert refused(tmp_path / "a.mkv", meant)


@pytest.mark.parametrize("ending", ["mkv", "webm"])
def test_a_film_that_was_streamed_as_it_came_is_no_cut_one(tmp_path, ending):
    """As a browser records: neither the whole nor its clusters say how long they are."""
    path = tmp_path / f"a.{ending}"
    with av.open(str(path), "w", options={"live": "1"}) as out:
        stream = out.add_stream("libvpx-vp9", rate=25, options=QUICK)
        stream.width, stream.height, stream.pix_fmt = 64, 64, "yuv420p"
        for picture in moving(50):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")))
        out.mux(stream.encode(None))
    assert codec.inspect(path).frames == 50
    data = path.read_bytes()
    path.write_bytes(data.replace(b"\x1f\x43\xb6\x75\x01" + b"\xff" * 7, b"\x1f\x43\xb6\x75\xff"))
    assert codec.inspect(path).frames == 50
