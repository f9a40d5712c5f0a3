"""Which clips come, in which order, from which frames: by seed and shard alone, whatever breaks on the way.

Files hold pictures of one colour: red tells the file, green the frame, so a clip betrays where it was cut.
"""

import csv
import itertools
import os
import pickle
import shutil
import sys
import tempfile
import tracemalloc
from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest

from cora.config import Corpus, Model, Pretrain
from cora.measure.features import tables
from cora.video import clips as module
from cora.video import codec, pack, source
from cora.video.clips import clips, views
from cora.video.ledger import CorpusError, Ledger
from cora.video.manifest import Clip, Manifest, load

GOOD, LENGTH = 9, 24
SIZES = dict(frames=4, size=16, batch=3)
BROKEN = (2, 5, 10)
"""Places in the manifest of files that cannot be read."""


def coloured(number: int, length: int) -> np.ndarray:
    video = np.zeros((length, 30, 40, 3), np.uint8)
    video[..., 0] = 20 * number + 20
    video[..., 1] = (8 * np.arange(length) + 20)[:, None, None]
    video[..., 2] = 128
    return video


def told(video: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns (file, frame) of every picture."""
    red, green = np.moveaxis(video[..., :2].mean((-3, -2)), -1, 0)
    return np.rint((red - 20) / 20).astype(int), np.rint((green - 20) / 8).astype(int)


@pytest.fixture(scope="module")
def corpus_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(GOOD):
        codec.write(folder / f"{number}.mp4", coloured(number, LENGTH), 12.0)
    (folder / "text.mp4").write_text("not a video")
    (folder / "empty.mp4").touch()
    return folder


def manifest_of(folder: Path, broken: bool) -> Manifest:
    paths = [folder / f"{number}.mp4" for number in range(GOOD)]
    if broken:
        for place, name in zip(BROKEN, ("text.mp4", "missing.mp4", "empty.mp4"), strict=True):
            paths.insert(place, folder / name)
    rows = tuple(Clip(p, i, str(i), str(p), "") for i, p in enumerate(paths))
    return Manifest(rows, tuple(map(str, range(len(paths)))))


def ledger_of(folder: Path, manifest: Manifest, max_bad: float = 0.5) -> Ledger:
    return Ledger(folder / "bad_files.csv", manifest.paths, max_bad)


def first(dataset, count: int) -> list[dict[str, np.ndarray]]:
    return list(itertools.islice(iter(dataset), count))


def assert_same(some: list[dict[str, np.ndarray]], others: list[dict[str, np.ndarray]]) -> None:
    assert len(some) == len(others)
    for one, other in zip(some, others, strict=True):
        for key in ("video", "label", "index"):
            np.testing.assert_array_equal(one[key], other[key])


@pytest.fixture
def drawn(corpus_folder, tmp_path):
    """Draws batches from the corpus: `drawn(count, broken=..., seed=..., shard=..., **corpus fields)`."""

    def draw(count: int, broken: bool = False, seed: int = 0, shard: tuple[int, int] = (0, 1), **fields):
        manifest = manifest_of(corpus_folder, broken)
        ledger = ledger_of(tmp_path, manifest)
        return first(clips(manifest, Corpus(**fields), **SIZES, seed=seed, ledger=ledger, shard=shard), count)

    return draw


# ------------------------------------------------------------------------------------------------- what a clip is


def test_a_batch_is_what_the_contract_says(drawn):
    (batch,) = drawn(1)
    assert {k: (v.shape, v.dtype) for k, v in batch.items()} == {
        "video": ((3, 4, 16, 16, 3), np.uint8), "label": ((3,), np.int32), "index": ((3,), np.int32)}
    np.testing.assert_array_equal(batch["label"], batch["index"])
    np.testing.assert_array_equal(told(batch["video"])[0], np.tile(batch["index"][:, None], 4))


def test_a_clip_without_label_says_minus_one(corpus_folder, tmp_path):
    manifest = Manifest((Clip(corpus_folder / "0.mp4", None, "", "", ""),), ())
    (batch,) = first(clips(manifest, Corpus(), **SIZES, seed=0, ledger=ledger_of(tmp_path, manifest)), 1)
    assert batch["label"].tolist() == [-1, -1, -1]


@pytest.mark.parametrize(("fields", "gaps"), [
    ({"sampling": "stride", "stride": 1}, {1}),
    ({"sampling": "stride", "stride": 5}, {5}),
    ({"sampling": "fps", "fps": 6.0}, {2}),
    ({"sampling": "fps", "fps": 8.0}, {1, 2}),
    ({"sampling": "span", "span": (1.0, 1.0)}, {6}),
    ({"sampling": "span", "span": (0.5, 0.5)}, {3}),
    ({"sampling": "span", "span": (1.0, 1.0), "longest": 1.0}, {3}),
    ({"sampling": "span", "span": (0.5, 0.5), "longest": 9.0}, {3}),
])
def test_frames_are_spaced_as_asked_and_windows_reach_every_part(drawn, fields, gaps):
    frames = np.concatenate([told(batch["video"])[1] for batch in drawn(40, **fields)])
    assert set(np.diff(frames).ravel().tolist()) == gaps
    room = LENGTH - sum(np.diff(frames)[0])
    assert frames.min() == 0 and frames.max() == LENGTH - 1 and len(set(frames[:, 0].tolist())) >= room - 1


@pytest.mark.parametrize("fields", [{"stride": 9}, {"sampling": "fps", "fps": 1.0}])
def test_a_file_too_short_for_the_window_repeats_its_last_frame(drawn, fields):
    step = 9 if "stride" in fields else 12
    for batch in drawn(5, **fields):
        frames = told(batch["video"])[1]
        assert (frames == np.minimum(np.arange(4) * step, LENGTH - 1)).all()


def test_window_starts_are_uniform():
    info, corpus = codec.VideoInfo(20, 25.0, 8, 8, ""), Corpus(stride=3)
    rng = np.random.default_rng(0)
    starts = [int(module._numbers(info, corpus, 4, rng.uniform(), 1.0)[0]) for _ in range(11_000)]
    counts = np.bincount(starts)
    assert len(counts) == 11 and ((counts - 1000) ** 2 / 1000).sum() < 29.6  # chi-square, 10 degrees, p = .001


@pytest.mark.parametrize("shape", [1.0, 1.2])
def test_crops_have_the_areas_and_aspects_asked_for(shape):
    """The aspect is that of the box relative to the clip's own."""
    rng = np.random.default_rng(0)
    boxes = np.array([module._crop(100, 150, (0.3, 0.6), (0.8, 1.25), shape, rng) for _ in range(2000)])
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    area, aspect = width * height / 15_000, width / height
    assert boxes[:, :2].min() >= 0 and boxes[:, 2].max() <= 150 and boxes[:, 3].max() <= 100
    assert 0.3 <= area.min() < 0.31 and 0.59 < area.max() <= 0.6
    assert 0.8 <= aspect.min() / shape < 0.81 and 1.24 < aspect.max() / shape <= 1.25 + 1e-9
    assert boxes[:, 0].min() < 2 and boxes[:, 2].max() > 148 and boxes[:, 3].max() > 98


@pytest.mark.parametrize(("shape", "box"), [
    ((100, 130), (0, 0, 130, 100)), ((130, 100), (0, 0, 100, 130)), ((100, 200), (32.5, 0, 167.5, 100)),
    ((200, 100), (0, 32.5, 100, 167.5))])
def test_the_centre_is_the_largest_box_of_a_legal_aspect(shape, box):
    np.testing.assert_allclose(module._centre(*shape, (0.75, 1.35), 1.0), box, atol=1e-9)


def test_the_centre_of_an_oblong_clip_is_oblong():
    np.testing.assert_allclose(module._centre(100, 400, (0.75, 1.35), 2.0), (65, 0, 335, 100), atol=1e-9)


def ramp(folder: Path) -> Manifest:
    """One still film, brighter to the right and bluer to the bottom."""
    video = np.zeros((4, 64, 64, 3), np.uint8)
    video[..., 0] = np.linspace(40, 210, 64).astype(np.uint8)
    video[..., 2] = np.linspace(40, 210, 64).astype(np.uint8)[:, None]
    codec.write(folder / "ramp.mp4", video, 12.0)
    return Manifest((Clip(folder / "ramp.mp4", 0, "", "", ""),), ("0",))


def test_flip_mirrors_whole_clips_left_to_right_and_about_half_of_them(tmp_path):
    manifest = ramp(tmp_path)
    shares = {}
    for flip in (False, True):
        made = first(clips(manifest, Corpus(flip=flip), **SIZES, seed=0, ledger=ledger_of(tmp_path, manifest)), 40)
        video = np.concatenate([b["video"] for b in made]).astype(int)
        falling = video[:, :, :, -1, 0].mean(2) < video[:, :, :, 0, 0].mean(2)
        assert (falling == falling[:, :1]).all() and (video[:, :, -1, :, 2] > video[:, :, 0, :, 2]).all()
        shares[flip] = falling[:, 0].mean()
    assert shares[False] == 0 and 0.35 < shares[True] < 0.65


def test_one_crop_holds_for_the_whole_clip_and_differs_between_clips(tmp_path):
    manifest = ramp(tmp_path)
    made = first(clips(manifest, Corpus(), **SIZES, seed=0, ledger=ledger_of(tmp_path, manifest)), 4)
    video = np.concatenate([b["video"] for b in made]).astype(int)
    assert np.abs(video - video[:, :1]).max() <= 3  # the film stands still
    assert len({tuple(v) for v in video[:, 0, 0, 0].tolist()}) > 6


# ------------------------------------------------------------------------------------------------- order


def test_an_epoch_visits_every_file_once_and_epochs_differ(drawn):
    index = np.concatenate([b["index"] for b in drawn(2 * GOOD // 3)]).reshape(2, GOOD)
    assert (np.sort(index) == np.arange(GOOD)).all() and (index[0] != index[1]).any()


def test_the_second_visit_of_a_file_is_cut_anew(drawn):
    made = drawn(4 * GOOD // 3)
    starts = told(np.concatenate([b["video"] for b in made]))[1][:, 0]
    index = np.concatenate([b["index"] for b in made])
    assert all(len(set(starts[index == i])) > 1 for i in range(GOOD))


@pytest.mark.parametrize("broken", [False, True])
def test_clips_follow_from_the_seed_and_not_from_threads(drawn, broken):
    one = drawn(12, broken, threads=1)
    assert_same(one, drawn(12, broken, threads=4))
    assert any((a["video"] != b["video"]).any() for a, b in zip(one, drawn(12, broken, seed=1), strict=True))


def test_shards_are_disjoint_and_cover_the_corpus_in_every_epoch(drawn):
    shares = [{i for b in drawn(9, shard=(n, 3)) for i in b["index"].tolist()} for n in range(3)]
    assert shares == [{0, 3, 6}, {1, 4, 7}, {2, 5, 8}]


def test_replacements_stay_within_the_shard(drawn):
    for n in range(2):
        assert {i % 2 for b in drawn(12, True, shard=(n, 2)) for i in b["index"].tolist()} == {n}


def test_replacements_are_spread_over_the_corpus(drawn):
    """Eight epochs: were one clip the stand-in for all three broken files, it would come 24 times too often."""
    visits = np.bincount(np.concatenate([b["index"] for b in drawn(32, True)]), minlength=GOOD + 3)
    assert visits.sum() == 8 * (GOOD + 3) and visits.max() < 8 + 12 and (visits[list(BROKEN)] == 0).all()


@pytest.mark.parametrize("shard", [(1, 1), (-1, 2), (0, GOOD + 1)])
def test_a_shard_that_cannot_be_is_refused(drawn, shard):
    with pytest.raises(ValueError, match=f"shard.*{GOOD} clips"):
        drawn(1, shard=shard)


@pytest.mark.parametrize("threads", [(1, 1), (1, 4)])
def test_a_resumed_iterator_goes_on_exactly(corpus_folder, tmp_path, threads):
    manifest = manifest_of(corpus_folder, broken=True)

    def fresh(threads: int, name: str):
        made = ledger_of(tmp_path / name, manifest)
        return iter(clips(manifest, Corpus(threads=threads), **SIZES, seed=3, ledger=made))

    straight = list(itertools.islice(fresh(1, "straight"), 20))
    before = fresh(threads[0], "before")
    for _ in range(7):
        next(before)
    resumed = fresh(threads[1], "resumed")  # with an empty ledger: what was met before must not matter
    resumed.set_state(before.get_state())
    assert_same(straight[7:], list(itertools.islice(resumed, 13)))


# ------------------------------------------------------------------------------------------------- unreadable files


def test_a_broken_file_changes_no_clip_but_its_own(corpus_folder, tmp_path):
    """The same places of the same manifest, with and without breakage: only the broken ones differ."""
    folder = tmp_path / "copy"
    shutil.copytree(corpus_folder, folder)
    manifest = manifest_of(folder, broken=False)

    def run() -> list[dict[str, np.ndarray]]:
        return first(clips(manifest, Corpus(), **SIZES, seed=0, ledger=ledger_of(tmp_path, manifest)), 12)

    whole = run()
    (folder / "4.mp4").write_text("not a video")
    for before, after in zip(whole, run(), strict=True):
        other = before["index"] != 4
        np.testing.assert_array_equal(before["video"][other], after["video"][other])
        assert (after["index"][~other] != 4).all()


def test_the_ledger_names_every_unreadable_file_once_with_its_reason(drawn, corpus_folder, tmp_path):
    for _ in range(2):  # the second run resumes the first one's ledger
        batches = drawn(16, True, threads=4)
    lines = (tmp_path / "bad_files.csv").read_text().splitlines()
    assert lines[0] == "path,reason" and sorted(lines[1:]) == sorted([
        f"{corpus_folder / 'text.mp4'},cannot be decoded (invalid data found when processing input)",
        f"{corpus_folder / 'missing.mp4'},does not exist", f"{corpus_folder / 'empty.mp4'},is empty"])
    assert not {i for b in batches for i in b["index"].tolist()} & set(BROKEN)


@pytest.mark.parametrize(("max_bad", "stops"), [(0.25, False), (0.24, True)])
def test_a_run_stops_once_too_much_is_unreadable(corpus_folder, tmp_path, max_bad, stops):
    manifest = manifest_of(corpus_folder, broken=True)  # 3 of 12
    dataset = clips(manifest, Corpus(), **SIZES, seed=0, ledger=ledger_of(tmp_path, manifest, max_bad))
    if not stops:
        first(dataset, 8)
        return
    for _ in range(2):  # and stops again when it is merely started again
        with pytest.raises(CorpusError, match=r"3 of 12 files \(25%\).*0\.24.*bad_files\.csv.*corpus\.max_bad"):
            first(clips(manifest, Corpus(), **SIZES, seed=0, ledger=ledger_of(tmp_path, manifest, max_bad)), 8)


@pytest.mark.parametrize("max_bad", [0.5, 1.0])
def test_a_corpus_without_a_readable_file_stops(tmp_path, max_bad):
    manifest = Manifest(tuple(Clip(tmp_path / f"{i}.mp4", 0, "", "", "") for i in range(3)), ("0",))
    with pytest.raises(CorpusError, match=r"unreadable|none of the 3 files"):
        first(clips(manifest, Corpus(), **SIZES, seed=0, ledger=ledger_of(tmp_path, manifest, max_bad)), 1)


def test_the_ledger_overlooks_half_a_line_of_a_killed_run(tmp_path):
    (tmp_path / "bad.csv").write_text("path,reason\n/a.mp4,is empty\n/b.m")
    files = [Path(f"/{letter}.mp4") for letter in "abcdef"]
    ledger = Ledger(tmp_path / "bad.csv", files, 0.5)
    ledger.record(codec.VideoError(Path("/c.mp4"), 'odd, "reason"'))
    again = Ledger(tmp_path / "bad.csv", files, 0.5)
    assert ledger.bad == again.bad == {"/a.mp4": "is empty", "/c.mp4": 'odd, "reason"'}


def test_the_ledger_counts_only_its_corpus_and_a_file_once_by_whatever_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.csv"
    before = Ledger(path, [Path(f"a{i}.mp4") for i in range(20)], 1.0)
    for i in range(20):
        before.record(codec.VideoError(Path(f"a{i}.mp4"), "is empty"))
    ledger = pickle.loads(pickle.dumps(Ledger(path, [Path(f"b{i}.mp4") for i in range(10)], 0.15)))
    for one in (Path("b3.mp4"), tmp_path / "b3.mp4", Path("b3.mp4")):
        ledger.record(codec.VideoError(one, "is empty"))
    assert ledger.bad == {str(tmp_path / "b3.mp4"): "is empty"}
    assert len(path.read_text().splitlines()) == 1 + 20 + 1
    with pytest.raises(CorpusError, match=r"2 of 10 files \(20%\)"):
        ledger.record(codec.VideoError(Path("b4.mp4"), "is empty"))


def test_a_ledger_reads_what_it_wrote_once_however_many_files_are_bad(tmp_path, monkeypatch):
    """Rows that are parsed grow with the files, not with their square; another ledger's rows are met all the same."""
    files, parsed = [tmp_path / f"{i}.mp4" for i in range(200)], []
    reader = csv.reader
    monkeypatch.setattr("cora.video.ledger.csv.reader",
                        lambda lines: (parsed.append(row) or row for row in reader(lines)))
    one, other = (Ledger(tmp_path / "bad.csv", files, 1.0) for _ in range(2))
    for i, file in enumerate(files):
        (one if i % 2 else other).record(codec.VideoError(file, "is empty"))
    for file in files:  # every one stands there, by whichever ledger
        one.record(codec.VideoError(file, "is empty"))
    assert len(one.bad) == 200 and len((tmp_path / "bad.csv").read_text().splitlines()) == 201
    assert len(parsed) <= 3 * 200


def test_a_name_with_a_carriage_return_comes_back_from_the_ledger(tmp_path):
    odd = [tmp_path / name for name in ("a\rb.mp4", "c\nd.mp4", 'e",f.mp4', "plain.mp4")]
    kept = Ledger(tmp_path / "bad.csv", odd, 1.0)
    for path in odd:
        kept.record(codec.VideoError(path, "is empty"))
    assert Ledger(tmp_path / "bad.csv", odd, 1.0).bad == kept.bad == {str(path): "is empty" for path in odd}


def test_a_ledger_of_relative_paths_is_understood(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bad.csv").write_text("path,reason\na.mp4,is empty\n")
    assert Ledger(Path("bad.csv"), [tmp_path / "a.mp4"], 1.0).bad == {str(tmp_path / "a.mp4"): "is empty"}


@pytest.mark.skipif(sys.platform != "linux", reason="other systems' names are text")
@pytest.mark.parametrize("side", [0, 30])
def test_a_name_that_is_not_text_is_read_or_listed(corpus_folder, tmp_path, monkeypatch, side):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    folder = tmp_path / "own"
    folder.mkdir()
    shutil.copy(corpus_folder / "1.mp4", folder / os.fsdecode(b"\xff.mp4"))
    shutil.copy(corpus_folder / "text.mp4", folder / os.fsdecode(b"\xfe.mp4"))
    rows = load(folder)
    ledger = ledger_of(tmp_path, rows)
    for batch in first(clips(rows, Corpus(pack=side), **SIZES, seed=0, ledger=ledger), 3):
        assert (told(batch["video"])[0] == 1).all()
    assert list(ledger.bad) == list(ledger_of(tmp_path, rows).bad) == [str(folder / os.fsdecode(b"\xfe.mp4"))]
    assert b"\xfe.mp4,cannot be decoded" in (tmp_path / "bad_files.csv").read_bytes()


# ------------------------------------------------------------------------------------------------- evaluation, packs


@pytest.mark.parametrize(("fields", "count", "frames"), [
    ({"stride": 2}, 1, [[9, 11, 13, 15]]),
    ({"stride": 2}, 3, [[3, 5, 7, 9], [9, 11, 13, 15], [15, 17, 19, 21]]),
    ({"sampling": "fps", "fps": 6.0}, 1, [[9, 11, 13, 15]]),
    ({"sampling": "span"}, 1, [[3, 9, 15, 21]]),
    ({"sampling": "span"}, 2, [[1, 7, 13, 19], [4, 10, 16, 22]]),
    ({"sampling": "span", "longest": 1.0}, 1, [[7, 10, 13, 16]]),
    ({"stride": 9}, 2, [[0, 9, 18, 23]] * 2),
])
def test_views_are_evenly_spaced_windows(corpus_folder, fields, count, frames):
    made = views(corpus_folder / "7.mp4", Corpus(**fields), frames=4, size=16, count=count)
    assert made.shape == (count, 4, 16, 16, 3) and told(made)[1].tolist() == frames and (told(made)[0] == 7).all()


def test_views_see_what_a_pack_would_hold(tmp_path):
    path = ramp(tmp_path).clips[0].path
    shrunk = source.shrink(codec.read(path, np.arange(4)), 20)
    meant = source.resize(shrunk, (0.0, 0.0, 20.0, 20.0), 16, 16)
    np.testing.assert_array_equal(views(path, Corpus(pack=20), frames=4, size=16, count=1)[0], meant)
    assert (views(path, Corpus(), frames=4, size=16, count=1)[0] != meant).any()


@pytest.mark.parametrize("fields", [{"stride": 2, "flip": True}, {"sampling": "span", "span": (0.3, 1.0), "pack": 20}])
def test_views_drawn_by_chance_are_cut_as_training_cuts_them(corpus_folder, fields):
    path, corpus = corpus_folder / "7.mp4", Corpus(**fields)
    for seed in range(3):
        film = source.files([path])(0)
        if corpus.pack:
            video = source.shrink(codec.read(path, np.arange(LENGTH)), corpus.pack)
            film = film._replace(read=lambda frames, video=video: video[frames])
        meant = module._cut(corpus, 4, 16, film, np.random.default_rng(seed))
        made = module.drawn(path, corpus, frames=4, size=16, count=1, rng=np.random.default_rng(seed))
        np.testing.assert_array_equal(made[0], meant)
    several = module.drawn(path, corpus, frames=4, size=16, count=5, rng=np.random.default_rng(0))
    assert several.shape == (5, 4, 16, 16, 3) and len(np.unique(several.reshape(5, -1), axis=0)) == 5


def test_a_clip_s_random_views_depend_on_no_other_clip(corpus_folder, tmp_path):
    """As a table holds them: two readers see the same ones, and an unreadable neighbour changes none."""
    settings = Pretrain(model=Model(frames=4, size=16, patch=8, width=16, heads=2, predictor_width=12),
                        corpus=Corpus(crop_scale=(0.3, 0.9)))
    flat = lambda video: video.reshape(1, len(video), -1).astype(np.float32)  # noqa: E731
    whole = manifest_of(corpus_folder, broken=True)
    lost = whole.clips[0]._replace(path=corpus_folder / "missing.mp4")
    wanting = replace(whole, clips=(lost, *whole.clips[1:]))
    found = [tables({"a": flat, "b": flat}, m, settings, ledger_of(tmp_path, m), 3) for m in (whole, wanting)]
    a, fewer = found[0]["a"], found[1]["a"]
    assert a.views.shape == (1, GOOD, 3, a.features.shape[2])
    np.testing.assert_array_equal(a.views, found[0]["b"].views)
    np.testing.assert_array_equal(a.views[:, 1:], fewer.views)
    alone = tables({"a": flat}, whole, settings, ledger_of(tmp_path, whole))["a"]
    assert alone.views is None
    np.testing.assert_array_equal(a.features, alone.features)
    assert len(np.unique(a.every(0)[3], axis=0)) == 4


def test_views_of_an_unreadable_file_say_why(corpus_folder):
    with pytest.raises(codec.VideoError, match="is empty"):
        views(corpus_folder / "empty.mp4", Corpus(), frames=4, size=16, count=1)


def test_a_pack_holds_what_reading_and_shrinking_gives(corpus_folder, tmp_path):
    paths = [c.path for c in manifest_of(corpus_folder, broken=True).clips]
    opened = source.files(paths)
    packed = pack.unpack(pack.pack(paths, tmp_path, 12))
    frames = np.array([3, 0, 23, 3])
    for number, path in enumerate(paths):
        if number in BROKEN:
            with pytest.raises(codec.VideoError) as meant:
                opened(number)
            with pytest.raises(codec.VideoError) as found:
                packed(number)
            assert (found.value.path, found.value.reason) == (path, meant.value.reason)
        else:
            assert packed(number).info == opened(number).info._replace(height=12, width=16)
            meant = source.shrink(opened(number).read(frames), 12)
            np.testing.assert_array_equal(packed(number).read(frames), meant)


def test_clips_of_a_pack_large_enough_are_the_files_own(drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert_same(drawn(12, True), drawn(12, True, pack=30))
    (made,) = (tmp_path / "cache" / "cora" / "packs").iterdir()
    assert (made / "frames.u8").stat().st_size == GOOD * LENGTH * 30 * 40 * 3
    (tmp_path / "bad_files.csv").unlink()
    drawn(12, True, pack=30)
    assert len((tmp_path / "bad_files.csv").read_text().splitlines()) == 1 + 3


def peak(of) -> int:
    """Returns the most bytes held by the second call; the first one imports and compiles."""
    of()
    tracemalloc.start()
    try:
        of()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["film.mp4", "film.avi"])
def test_the_memory_that_a_film_takes_does_not_grow_with_its_length(tmp_path, monkeypatch, name):
    picture, side = 120 * 160 * 3, 12
    monkeypatch.setattr(codec, "AT_ONCE", 4 * picture)
    path = tmp_path / name
    with av.open(str(path), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for number in range(240):
            shade = np.full((120, 160, 3), number, np.uint8)
            out.mux(stream.encode(av.VideoFrame.from_ndarray(shade, format="rgb24")))
        out.mux(stream.encode(None))
    corpus = Corpus(sampling="span", span=(1.0, 1.0))
    made = {"pack": lambda: pack.pack([path], Path(tempfile.mkdtemp(dir=tmp_path)), side, threads=1),
            "drawn": lambda: module.drawn(path, corpus, frames=16, size=8, count=24, rng=np.random.default_rng(0)),
            "views": lambda: views(path, corpus, frames=16, size=8, count=15)}
    codec.inspect(path)
    for way, make in made.items():
        assert peak(make) < 20 * picture, way
    by_blocks = {way: made[way]() for way in ("drawn", "views")}
    monkeypatch.setattr(codec, "AT_ONCE", 2**26)
    for way, video in by_blocks.items():
        np.testing.assert_array_equal(video, made[way]())
    whole = source.shrink(codec.read(path, np.arange(240)), side)
    np.testing.assert_array_equal(pack.unpack(made["pack"]())(0).read(np.arange(240)), whole)


def test_a_film_that_breaks_midway_leaves_nothing_in_the_pack(corpus_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(codec, "AT_ONCE", 1)
    paths = [tmp_path / "broken.mp4", corpus_folder / "1.mp4"]
    with av.open(str(paths[0]), "w") as out:
        stream = out.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 32, "yuv420p"
        for picture in np.random.default_rng(0).integers(0, 256, (40, 32, 64, 3), np.uint8):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        out.mux(stream.encode(None))
    with av.open(str(paths[0])) as container:
        middle = [packet.pos for packet in container.demux() if packet.size][20]
    data = bytearray(paths[0].read_bytes())
    data[middle + 100 : middle + 300] = bytes(200)
    paths[0].write_bytes(data)
    assert len(next(codec.stream(paths[0], np.arange(40)))) == 1
    packed = pack.unpack(pack.pack(paths, tmp_path / "packs", 12))
    with pytest.raises(codec.VideoError, match=r"cannot be decoded|ends or is damaged before frame 20 of 40"):
        packed(0)
    meant = source.shrink(codec.read(paths[1], np.arange(LENGTH)), 12)
    np.testing.assert_array_equal(packed(1).read(np.arange(LENGTH)), meant)


def test_a_full_disk_stops_a_pack_before_it_is_filled(corpus_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40, 2**20))
    with pytest.raises(OSError, match=r"too full.*\(1 MiB free\).*corpus\.pack"):
        pack.pack([corpus_folder / "0.mp4"], tmp_path / "packs", 12)
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_pack_that_cannot_fit_is_refused_before_anything_is_decoded(corpus_folder, tmp_path, monkeypatch):
    """There is room for any one of the files, and not for all."""
    paths = [path for path in sorted(corpus_folder.glob("?.mp4")) if path.stat().st_size]
    size = sum(len(video) * 12 * 16 * 3 for video in (codec.read(path, np.arange(LENGTH)) for path in paths))
    assert pack.estimate(paths, 12) == size
    free = 2**28 + size // 2
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(2**40, 2**40, free))
    monkeypatch.setattr(codec, "stream", lambda *_: pytest.fail("decoded"))
    with pytest.raises(OSError, match=r"too full.*corpus\.pack"):
        pack.pack(paths, tmp_path / "packs", 12)
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_pack_says_how_large_it_will_be_and_how_far_it_is(corpus_folder, tmp_path, monkeypatch, capsys):
    paths = sorted(corpus_folder.glob("*.mp4"))
    monkeypatch.setattr(pack, "EVERY", 0.0)
    made = pack.pack(paths, tmp_path / "packs", 12)
    size = f"{(made / 'frames.u8').stat().st_size / 1e6:.1f} MB"
    first, *rest = capsys.readouterr().err.splitlines()
    assert f"packing {len(paths)} files at 12 pixels" in first and f"about {size}," in first
    parts = [f"packing: {i} of {len(paths)}" for i in range(1, 1 + len(paths))]
    assert [line.split(" files")[0] for line in rest] == parts
    assert f"{size} of about {size}, 0:00:00 left" in rest[-1]
    monkeypatch.setattr(pack, "EVERY", 1e9)
    pack.pack(paths, tmp_path / "packs", 13)
    assert len(capsys.readouterr().err.splitlines()) == 2
    pack.pack(paths, tmp_path / "packs", 13)
    assert capsys.readouterr().err == ""


def test_a_pack_is_built_once_and_anew_for_a_changed_corpus(corpus_folder, tmp_path):
    folder, packs = tmp_path / "copy", tmp_path / "packs"
    shutil.copytree(corpus_folder, folder)
    paths = [folder / "0.mp4", folder / "1.mp4"]
    made = pack.pack(paths, packs, 12)
    stamp = (made / "frames.u8").stat().st_mtime_ns
    assert pack.pack(paths, packs, 12) == made and (made / "frames.u8").stat().st_mtime_ns == stamp
    codec.write(paths[0], coloured(3, 5), 12.0)
    changed = pack.pack(paths, packs, 12)
    assert len({made, changed, pack.pack(paths, packs, 16)}) == 3
    assert pack.unpack(changed)(0).info.frames == 5 and len(list(packs.iterdir())) == 3


def test_an_interrupted_pack_leaves_nothing_behind(corpus_folder, tmp_path, monkeypatch):
    def interrupted(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(pack, "shrink", interrupted)
        with pytest.raises(KeyboardInterrupt):
            pack.pack([corpus_folder / "0.mp4"], tmp_path / "packs", 12)
    assert list((tmp_path / "packs").iterdir()) == []


def test_a_pack_whose_pictures_are_cut_off_is_refused(corpus_folder, tmp_path):
    made = pack.pack([corpus_folder / "0.mp4"], tmp_path, 12)
    (made / "frames.u8").write_bytes(b"\0" * 100)
    with pytest.raises(ValueError, match=r"holds 100 bytes.*delete the folder"):
        pack.unpack(made)


@pytest.mark.parametrize(("shape", "side", "shrunk"), [
    ((24, 32), 12, (12, 16)), ((32, 24), 12, (16, 12)), ((24, 32), 24, (24, 32)), ((24, 32), 99, (24, 32)),
    ((30, 31), 10, (10, 10))])
def test_shrinking_keeps_the_aspect_and_never_enlarges(shape, side, shrunk):
    assert source.shrink(np.zeros((2, *shape, 3), np.uint8), side).shape == (2, *shrunk, 3)


def test_a_worker_process_resumes_where_its_state_says(corpus_folder, tmp_path):
    manifest = manifest_of(corpus_folder, broken=True)
    made = clips(manifest, Corpus(workers=1), seed=3, ledger=ledger_of(tmp_path, manifest), **SIZES)
    first = iter(made)
    next(first)
    state, wanted = first.get_state(), next(first)
    second = iter(made)
    second.set_state(state)
    np.testing.assert_array_equal(next(second)["video"], wanted["video"])
