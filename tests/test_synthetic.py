"""Laws of the embedded corpus: pixels follow from the seed, labels from time, splits keep apart."""

import csv
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cora.video import codec, drawing, events, manifest, synthetic
from cora.video.synthetic import MOTIONS, Plan, Scene

SMALL = Plan(train=13, test=5, frames=6, side=64)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def forget() -> None:
    for cached in (drawing.backdrop, drawing.sprite, drawing._relief):
        cached.cache_clear()


# ---------------------------------------------------------------------------------------------------- drawing


@pytest.mark.parametrize("radius", [4.0, 9.0, 13.5, 30.0])
def test_a_painted_sprite_has_the_place_and_the_area_of_its_pose(radius: float) -> None:
    texture = drawing.sprite("ball", 0).copy()
    texture[:3] = texture[3]
    x, y = np.array([40.3, 37.9]), np.array([41.75, 44.0])
    frames = np.zeros((2, 90, 90, 3), np.float32)
    drawing.paint(frames, texture, drawing.Pose(x, y, np.full(2, radius), np.array([0.0, 2.0])))
    light = frames[..., 0]
    at = np.arange(90) + 0.5
    np.testing.assert_allclose(light.sum((1, 2)), np.pi * (0.86 * radius) ** 2, rtol=0.05)
    soft = ((light > 0.05) & (light < 0.95)).sum((1, 2))
    assert (soft < 2.2 * 2 * np.pi * 0.86 * radius).all(), "the rim is blurred"
    np.testing.assert_allclose((light * at).sum((1, 2)) / light.sum((1, 2)), x, atol=0.05)
    np.testing.assert_allclose((light * at[:, None]).sum((1, 2)) / light.sum((1, 2)), y, atol=0.05)


def test_angles_are_clockwise_quarter_turns_of_the_picture() -> None:
    frames = np.zeros((2, 41, 41, 3), np.float32)
    middle, angle = np.full(2, 20.5), np.array([0, np.pi / 2])
    drawing.paint(frames, drawing.sprite("arrow", 1), drawing.Pose(middle, middle, middle / 2, angle))
    np.testing.assert_allclose(np.rot90(frames[0], -1), frames[1], atol=0.05)
    assert np.abs(np.rot90(frames[0], 1) - frames[1]).max() > 50


def test_a_sprite_outside_or_without_size_leaves_the_frame_alone_and_at_the_border_is_cut() -> None:
    frames = np.full((4, 30, 30, 3), 9, np.float32)
    x, radius = np.array([-40.0, 15.0, 0.0, 30.0]), np.array([8.0, 0.0, 8.0, 8.0])
    drawing.paint(frames, drawing.sprite("box", 0), drawing.Pose(x, np.full(4, 15.0), radius, np.zeros(4)))
    assert (frames[:2] == 9).all()
    assert (frames[2, 15, :4] != 9).all() and (frames[2, :, 12:] == 9).all()
    assert (frames[3, 15, 26:] != 9).all() and (frames[3, :, :20] == 9).all()


def test_film_shifts_by_whole_pixels_exactly_and_by_halves_as_means() -> None:
    picture = drawing.backdrop("clouds-0")
    got = drawing.film(picture, np.array([3.0, 3.5]), np.array([5.0, 5.0]), 20)
    np.testing.assert_array_equal(got[0], picture[5:25, 3:23])
    np.testing.assert_allclose(got[1], (picture[5:25, 3:23] + picture[5:25, 4:24]) / 2, atol=1e-3)


def test_backdrops_and_identities_all_differ() -> None:
    pictures = [drawing.backdrop(name) for name in drawing.BACKDROPS]
    shapes = [drawing.sprite(name, 0)[3] for name in drawing.IDENTITIES]
    for things, least in ((pictures, 5.0), (shapes, 0.05)):
        gaps = [np.abs(a - b).mean() for i, a in enumerate(things) for b in things[:i]]
        assert min(gaps) > least


# ---------------------------------------------------------------------------------------------------- motions


def test_motions_go_where_their_names_say() -> None:
    t = np.linspace(-0.5, 0.5, 33)
    path = {name: motion(t, 0.3, 1.0) for name, motion in MOTIONS.items()}
    still = {"right": ("x", 1), "left": ("x", -1), "up": ("y", -1), "down": ("y", 1), "grow": ("grow", 1),
             "shrink": ("grow", -1), "spin": ("turn", 1)}
    for name, (axis, sign) in still.items():
        for part in synthetic.Track._fields:
            steps = np.diff(getattr(path[name], part)) * sign
            assert (steps > 0).all() if part == axis else (steps == 0).all(), (name, part)
    for name, sign in (("clockwise", 1), ("anticlockwise", -1)):
        p = path[name]
        # With y downwards the cross product of place and step is positive where the screen shows a clockwise turn.
        assert (sign * (p.x[:-1] * np.diff(p.y) - p.y[:-1] * np.diff(p.x)) > 0).all()
    for there_and_back in (path["bounce"].y, path["zigzag"].x, path["sway"].x):
        assert (np.diff(np.sign(np.diff(there_and_back))) != 0).sum() >= 2


def test_time_reversed_a_motion_is_its_opposite() -> None:
    t = np.linspace(-0.5, 0.5, 33)
    for one, other in (("right", "left"), ("up", "down"), ("grow", "shrink"), ("clockwise", "anticlockwise")):
        forwards, backwards = MOTIONS[one](t, 0.2, 1.0), MOTIONS[other](t, -0.2, 1.0)
        for a, b in zip(forwards, backwards, strict=True):
            np.testing.assert_allclose(a[::-1], b, atol=1e-12)


def test_the_middle_frame_is_the_same_picture_for_every_steady_motion() -> None:
    plan = Plan(frames=21)
    clips = {m: synthetic.draw(Scene("train", m, "star", "dots-1", 0.8, (0, 4)), plan)
             for m in ("right", "left", "up", "down", "grow", "shrink", "spin")}
    for motion, video in clips.items():
        np.testing.assert_allclose(video[10].astype(int), clips["right"][10], atol=1, err_msg=motion)
        assert motion == "right" or np.abs(video[0].astype(int) - clips["right"][0]).max() > 50


# ----------------------------------------------------------------------------------------------------- scenes


def test_frames_follow_from_the_seed_bit_for_bit() -> None:
    chosen = [synthetic.scenes(SMALL)[k] for k in (0, 7, 16)]
    first = [synthetic.draw(scene, SMALL) for scene in chosen]
    forget()
    again = [synthetic.draw(scene, SMALL) for scene in reversed(synthetic.scenes(SMALL)) if scene in chosen]
    for a, b in zip(first, reversed(again), strict=True):
        assert a.shape == (6, 64, 64, 3) and a.dtype == np.uint8
        np.testing.assert_array_equal(a, b)
    other = synthetic.scenes(Plan(seed=1, train=13, test=5, frames=6, side=64))
    assert other != synthetic.scenes(SMALL)
    assert (synthetic.draw(chosen[0]._replace(seed=(1, 0)), SMALL) != first[0]).any()


def test_the_test_split_holds_out_pairs_and_families_of_backdrops() -> None:
    scenes = synthetic.scenes(Plan())
    train, test = ([s for s in scenes if s.split == split] for split in ("train", "test"))
    assert (len(train), len(test)) == (540, 252)
    assert not {(s.identity, s.motion) for s in train} & {(s.identity, s.motion) for s in test}
    assert not {s.backdrop.split("-")[0] for s in train} & {s.backdrop.split("-")[0] for s in test}
    for split in (train, test):
        assert {s.identity for s in split} == set(drawing.IDENTITIES) and {s.motion for s in split} == set(MOTIONS)
    assert len({s.backdrop for s in train}) >= 8
    held = Counter(m for i in drawing.IDENTITIES for m in MOTIONS if synthetic.held_out(i, m))
    assert set(held.values()) == {3} and len(held) == 12


@pytest.mark.parametrize("split", ["train", "test"])
def test_labels_do_not_lean_towards_a_nuisance(split: str) -> None:
    scenes = [s for s in synthetic.scenes(Plan()) if s.split == split]
    assert len(set(Counter(s.motion for s in scenes).values())) == 1
    for nuisance in ("identity", "backdrop"):
        for motion in MOTIONS:
            seen = {getattr(s, nuisance) for s in scenes if nuisance == "backdrop" or s.motion == motion}
            table = Counter(getattr(s, nuisance) for s in scenes if s.motion == motion)
            assert max(table.values()) - min(table[value] for value in seen) <= 1, (nuisance, motion)
    speeds = np.array([[s.speed for s in scenes if s.motion == m] for m in MOTIONS])
    # Under independence the means of n uniform draws scatter with std width / sqrt(12 n).
    scatter = 0.55 / np.sqrt(12 * speeds.shape[1])
    assert np.abs(speeds.mean(1) - 1.025).max() < 4 * scatter and speeds.min() >= 0.75 and speeds.max() <= 1.3


@pytest.mark.parametrize("field, value", [("side", 200), ("side", 47), ("frames", 1), ("train", 0), ("test", -1)])
def test_impossible_plans_are_refused_by_name(field: str, value: int) -> None:
    with pytest.raises(ValueError, match=f"{field} = {value}"):
        Plan(**{field: value})


# ------------------------------------------------------------------------------------------------------ files


def test_render_writes_what_its_manifest_says(tmp_path: Path) -> None:
    path = synthetic.render(tmp_path, plan=SMALL)
    scenes = synthetic.scenes(SMALL)
    assert path == tmp_path / "manifest.csv"
    assert tuple(rows(path)[0])[: len(synthetic.COLUMNS)] == synthetic.COLUMNS
    for row, scene in zip(rows(path), scenes, strict=True):
        assert (row["class_name"], row["identity"], row["split"]) == (scene.motion, scene.identity, scene.split)
        assert row["group"] == row["background"] == scene.backdrop and float(row["speed"]) == scene.speed
        info = codec.inspect(tmp_path / row["path"])
        promised = (int(row["n_frames"]), float(row["fps"]), int(row["height"]), int(row["width"]))
        assert info[:4] == promised and info.codec == "h264"
    video = synthetic.draw(scenes[3], SMALL)
    stored = codec.read(tmp_path / rows(path)[3]["path"], np.arange(6))
    assert np.abs(video.astype(int) - stored).mean() < 6
    assert [p.name for p in sorted(tmp_path.iterdir())] == ["clips", "identity.csv", "manifest.csv"]


def test_both_manifests_load_with_motion_or_identity_as_label(tmp_path: Path) -> None:
    plan = Plan(train=60, test=12, frames=2, side=16)
    motions = manifest.load(synthetic.render(tmp_path, plan=plan))
    assert motions.classes == tuple(MOTIONS)
    assert manifest.load(tmp_path / "identity.csv").classes == drawing.IDENTITIES
    assert len(manifest.select(motions, "train").clips) == 60
    assert all(clip.path.exists() for clip in motions.clips)


def test_an_interrupted_render_is_never_taken_for_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    written, write = [], codec.write

    def interrupted(path: Path, video: np.ndarray, fps: float) -> None:
        if len(written) == 5:
            raise KeyboardInterrupt
        written.append(path)
        write(path, video, fps)

    with monkeypatch.context() as patch:
        patch.setattr(codec, "write", interrupted)
        with pytest.raises(KeyboardInterrupt):
            synthetic.corpus(plan=SMALL)
        assert not list((tmp_path / "cora").iterdir()) and len(written) == 5
        # Nor does a second render into a whole folder leave the old manifest beside new clips.
        whole = tmp_path / "whole"
        whole.mkdir()
        (whole / "manifest.csv").write_text("old")
        with pytest.raises(KeyboardInterrupt):
            synthetic.render(whole, plan=SMALL)
        assert not (whole / "manifest.csv").exists()
    assert len(rows(synthetic.corpus(plan=SMALL))) == 18


def test_the_cache_renders_once_and_knows_plans_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiny = Plan(train=2, test=1, frames=2, side=16)
    first = synthetic.corpus(plan=tiny)
    assert tmp_path in first.parents
    assert synthetic.corpus(plan=Plan(seed=1, train=2, test=1, frames=2, side=16)) != first
    monkeypatch.setattr(codec, "write", None)
    assert synthetic.corpus(plan=tiny) == first
    assert [p.name[0] for p in (tmp_path / "cora").iterdir()] == ["s", "s"]


def test_of_two_renders_at_once_the_first_to_finish_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    tiny, write, racing = Plan(train=1, test=1, frames=2, side=16), codec.write, [True]

    def raced(path: Path, video: np.ndarray, fps: float) -> None:
        if racing.pop():
            racing.append(False)
            (synthetic.corpus(plan=tiny).parent / "first").touch()
        racing.append(False)
        write(path, video, fps)

    monkeypatch.setattr(codec, "write", raced)
    assert (synthetic.corpus(plan=tiny).parent / "first").exists()


def test_rendering_and_encoding_keep_pace(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    plan = Plan(train=36, test=12)
    synthetic.render(tmp_path, plan=plan)
    began = time.process_time()
    synthetic.render(tmp_path, plan=plan)
    pace = 48 / (time.process_time() - began)
    record_property("clips_per_cpu_second", round(pace))
    assert pace > 15


# ----------------------------------------------------------------------------------------------------- events

PAIRS = [(kind, seed) for kind in events.EVENTS for seed in range(6)]


@pytest.mark.parametrize("kind, seed", PAIRS)
def test_a_pair_is_one_clip_until_the_event_and_two_after(kind: str, seed: int) -> None:
    pair = events.draw_pair(kind, (seed, 0))
    assert (pair.possible[: pair.event] == pair.impossible[: pair.event]).all()
    differ = (pair.possible != pair.impossible).any((1, 2, 3))
    assert differ[pair.event] and differ[pair.event :].mean() > 0.3
    assert 8 <= pair.event <= 24
    np.testing.assert_array_equal(pair.possible, events.draw_pair(kind, (seed, 0)).possible)
    assert (pair.possible != events.draw_pair(kind, (seed, 1)).possible).any()


@pytest.mark.parametrize("kind, seed", [(k, s) for k, s in PAIRS if k != "pass-through"])
def test_the_object_breaks_the_rules_out_of_sight(kind: str, seed: int) -> None:
    """The frame before the event shows the bare scene, so no object was seen to go, jump or turn."""
    pair = events.draw_pair(kind, (seed, 0))
    bare = np.median(np.concatenate([pair.possible, pair.impossible]), axis=0)
    assert (pair.possible[pair.event - 1] == bare).all()
    assert (pair.possible[0] != bare).any()


def test_an_object_that_passes_through_was_about_to_touch_the_wall() -> None:
    for seed in range(6):
        pair = events.draw_pair("pass-through", (seed, 0))
        bare = np.median(np.concatenate([pair.possible, pair.impossible]), axis=0)
        reds = (bare[..., 0] > 1.5 * bare[..., 2]) & (bare[..., 0] > 110)
        wall = np.flatnonzero(reds.mean(0) > 0.5)
        seen = np.flatnonzero((pair.possible[pair.event - 1] != bare).any((0, 2)))
        assert min(abs(seen.max() - wall.min()), abs(wall.max() - seen.min())) <= 4


def test_events_are_written_as_matched_rows(tmp_path: Path) -> None:
    path = events.events(tmp_path, seed=3, pairs=5)
    table = rows(path)
    assert [row["kind"] for row in table[::2]] == [*events.EVENTS, "vanish"]
    for k, (one, other) in enumerate(zip(table[::2], table[1::2], strict=True)):
        assert (one["label"], one["class_name"], other["label"], other["class_name"]) == (
            "0", "possible", "1", "impossible")
        assert one["group"] == other["group"] and one["event"] == other["event"]
        assert one["split"] == other["split"] == "test"
        pair = events.draw_pair(one["kind"], (3, k))
        assert int(one["event"]) == pair.event
        files = [codec.read(tmp_path / row["path"], np.arange(events.FRAMES)) for row in (one, other)]
        # What is seen before the event survives encoding alike: the files do not leak what is to come.
        np.testing.assert_array_equal(files[0][: pair.event], files[1][: pair.event])
        assert np.abs(files[0].astype(int) - pair.possible).mean() < 6
    assert len({row["group"] for row in table}) == 5
    assert manifest.load(path).classes == events.CLASSES


def test_unknown_events_and_no_pairs_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'explode': must be one of vanish, teleport"):
        events.draw_pair("explode", (0, 0))
    with pytest.raises(ValueError, match="pairs = 0"):
        events.events(tmp_path, pairs=0)


# ---------------------------------------------------------------------------------------------------- picture


def test_a_contact_sheet_shows_the_frames_in_order_of_time() -> None:
    tones = [np.full((9, 20, 20, 3), 20 + 20 * k, np.uint8) + np.arange(9, dtype=np.uint8)[:, None, None, None]
             for k in range(5)]
    sheet = synthetic.contact_sheet([(f"clip {k}", tone) for k, tone in enumerate(tones)], shown=3, columns=2)
    assert sheet.dtype == np.uint8
    for k in range(5):
        found = [np.flatnonzero((sheet == 20 + 20 * k + i).all(-1).any(0)) for i in (0, 4, 8)]
        assert all(len(columns) >= 20 for columns in found)
        assert found[0].min() < found[1].min() < found[2].min()
