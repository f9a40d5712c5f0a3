"""Laws of the stream: a film is a function of its seed and number, and what is said of it is what its pixels show."""

import csv
import runpy
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cora import config
from cora.video import manifest, stream
from cora.video.clips import ENDLESS, clips, mixed
from cora.video.ledger import Ledger

DATA = Path(__file__).parent.parent / "data" / "stream.py"
WHITE = jnp.ones((2, stream.THINGS, 2, 3))


def drawn(number: int, frames: int = 16, side: int = 48) -> tuple[np.ndarray, stream.Facts]:
    return stream.renderer(frames, (side, side))(3, number)


def scene(number: int) -> stream.Scene:
    return stream.scene(jax.random.key(number))


def alone(one: stream.Scene, place: int) -> stream.Scene:
    """The film with that thing alone, white before black, seen by a camera that changes no light."""
    things = one.shots.things
    white = things.texture._replace(colours=WHITE)
    there = things.there & (jnp.arange(stream.THINGS) == place)[None]
    black = one.shots.backdrop._replace(colours=jnp.zeros((2, 2, 3)))
    camera = one.shots.camera._replace(light=jnp.zeros(2))
    return one._replace(shots=stream.Shot(black, things._replace(texture=white, there=there), camera))


def shape_of(one: stream.Scene, place: int, side: int = 96) -> np.ndarray:
    """Which pixels of each frame a thing would take if it were alone, as numbers from 0 to 1."""
    return (np.asarray(stream.film(alone(one, place), 8, (side, side))[0])[..., 0] > 40).astype(float)


def test_a_film_is_a_function_of_seed_and_number():
    first, again = drawn(7), drawn(7)
    np.testing.assert_array_equal(first[0], again[0])
    jax.tree.map(np.testing.assert_array_equal, first[1], again[1])
    assert (first[0] != drawn(8)[0]).mean() > 0.2
    assert (first[0] != stream.renderer(16, (48, 48))(4, 7)[0]).mean() > 0.2


def test_films_need_not_be_square():
    tall = stream.renderer(4, (64, 32))(0, 1)[0]
    wide = stream.renderer(4, (32, 64))(0, 1)[0]
    np.testing.assert_array_equal(tall[:, 16:48], wide[:, :, 16:48])


@pytest.mark.parametrize("number", range(6))
def test_position_and_hiding_are_what_the_pixels_show(number):
    one = scene(number)
    facts = jax.tree.map(np.asarray, stream.film(one, 8, (96, 96))[1])
    shapes = [shape_of(one, place) for place in range(stream.THINGS)]
    axis = (np.arange(96) + 0.5) / 48 - 1
    seen = 0
    for place in range(stream.THINGS):
        nearer = np.prod([1 - s for s in shapes[:place]], axis=0) if place else np.ones_like(shapes[0])
        for frame in range(8):
            own = shapes[place][frame]
            if not facts.there[frame, place] or own.sum() < 60:
                continue
            hidden = 1 - (own * nearer[frame]).sum() / own.sum()
            assert abs(hidden - facts.covered[frame, place]) < 0.06
            if facts.inside[frame, place] > 0.97:  # else the middle of what is seen is not the middle of the thing
                middle = (own.sum(0) @ axis / own.sum(), own.sum(1) @ axis / own.sum())
                assert np.abs(middle - facts.position[frame, place]).max() < 0.05
                seen += 1
    assert seen > 3 or not facts.there[:, 0].any()


def test_velocity_is_the_slope_of_the_position():
    one = scene(11)._replace(cut=jnp.array(2.0))
    facts = jax.tree.map(np.asarray, stream.film(one, 400, (8, 8))[1])
    slope = (facts.position[2:] - facts.position[:-2]) * 200
    smooth = ~(facts.bounced[2:] | facts.bounced[1:-1])
    assert facts.there.any()
    np.testing.assert_allclose(slope[smooth], facts.velocity[1:-1][smooth], atol=0.02)


def test_things_turn_back_when_it_says_so():
    things = scene(5).shots.things
    bouncing = things._replace(motion=jnp.full_like(things.motion, stream.MOTIONS.index("bounce")),
                               there=jnp.ones_like(things.there), velocity=2 * things.velocity)
    still = jax.tree.map(jnp.zeros_like, scene(5).shots.camera)
    one = scene(5)._replace(cut=jnp.array(2.0), shots=stream.Shot(scene(5).shots.backdrop, bouncing, still))
    facts = jax.tree.map(np.asarray, stream.film(one, 400, (8, 8))[1])
    assert np.abs(facts.position).max() <= stream.WALL + 1e-3
    step = np.sign(np.diff(facts.position, axis=0))
    turned = (step[1:] != step[:-1]).any(-1)  # the frame after which it goes the other way
    assert facts.bounced.sum() > 3
    for frame, place in np.argwhere(facts.bounced[1:-1]):
        assert turned[max(frame - 1, 0) : frame + 2, place].any()
    assert abs(int(turned.sum()) - int(facts.bounced.sum())) <= stream.THINGS


def test_nothing_is_said_of_what_is_not_there():
    facts = drawn(2)[1]
    for name, value in facts._asdict().items():
        if name not in ("there", "cut"):
            assert not np.any(value[~facts.there]), name
    counts = {int(drawn(i)[1].there[0].sum()) for i in range(40)}
    assert counts == set(range(stream.THINGS + 1))


def test_a_run_sees_film_after_film_and_goes_on_where_it_stood(tmp_path):
    corpus = config.Corpus(path=config.STREAM)
    whole = clips(manifest.Manifest((), ()), corpus, frames=4, size=32, batch=3, seed=5,
                  ledger=Ledger(tmp_path / "bad.csv", [], 0.5))
    straight = iter(whole)
    first = next(straight)
    state = straight.get_state()
    second = next(straight)
    again = iter(whole)
    again.set_state(state)
    resumed = next(again)
    np.testing.assert_array_equal(resumed["video"], second["video"])
    draw = stream.renderer(4, (32, 32))
    for batch, numbers in ((first, range(3)), (second, range(3, 6))):
        np.testing.assert_array_equal(batch["index"], list(numbers))
        np.testing.assert_array_equal(batch["video"], np.stack([draw(5, i)[0] for i in numbers]))


def test_processes_share_the_stream_out(tmp_path):
    corpus, book = config.Corpus(path=config.STREAM), Ledger(tmp_path / "bad.csv", [], 0.5)
    seen = [next(iter(mixed([(manifest.Manifest((), ()), corpus)], frames=4, size=32, batch=4, seed=0, ledger=book,
                            shard=(i, 2))))["index"].tolist() for i in (0, 1)]
    assert seen == [[0, 2, 4, 6], [1, 3, 5, 7]]


def test_what_the_stream_does_not_read_is_refused():
    ignored = {"pack": 80, "sampling": "span", "flip": True, "split": "test"}
    for name, value in ignored.items():
        with pytest.raises(config.ConfigError, match=f"corpus.{name} = .*nothing reads it where corpus.path"):
            config.Corpus(path=config.STREAM, **{name: value})


def test_files_say_of_films_what_the_stream_says(tmp_path):
    program = runpy.run_path(str(DATA))
    options = program["Options"](out=tmp_path, train=5, test=3, frames=4, side=32)
    program["write"](options, tmp_path)
    known = np.load(tmp_path / "facts.npz")
    draw = stream.renderer(4, (32, 32))
    numbers = [*range(5), *(ENDLESS - i for i in range(3))]
    for place, number in enumerate(numbers):
        np.testing.assert_array_equal(known["position"][place], draw(0, number)[1].position)
    for name, classes in program["LISTS"].items():
        rows = list(csv.DictReader((tmp_path / f"{name}.csv").read_text().splitlines()))
        assert [row["split"] for row in rows] == ["train"] * 5 + ["test"] * 3
        for row, number in zip(rows, numbers, strict=True):
            facts = draw(0, number)[1]
            expected = {"count": str(int(facts.there[2].sum())), "cut": ("one shot", "two shots")[int(facts.cut.any())],
                        "manifest": "" if stream.subject(facts) < 0 else stream.MOTIONS[stream.subject(facts)]}
            assert row["class_name"] == expected.get(name, row["class_name"])
            assert row["class_name"] in ("", *classes)
    assert len(manifest.load(tmp_path / "manifest.csv").clips) == 8
