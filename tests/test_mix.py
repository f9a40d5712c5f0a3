"""Laws of batches of unlike clips: corpora by weight, shapes by their share, one gradient, one resumable state."""

from collections import Counter

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from laws import compiled, drawn, near
from PIL import Image

from cora import config, train
from cora.config import Corpus
from cora.nets.hierarchy import build
from cora.video import codec, manifest
from cora.video.clips import clips, mixed, together
from cora.video.ledger import Ledger

MODEL = config.Model(frames=4, size=16, patch=8, width=16, heads=2, levels=2, predictor_width=8, predictor_heads=1)


def run_of(*corpora, batch=12, **sections):
    run = config.Run(batch=batch, steps=8)
    return config.Pretrain(model=MODEL, corpus=corpora[0], mix=corpora[1:], run=run, **sections)


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two corpora of films, red and blue, and one of green images."""
    made = {}
    for colour, name in enumerate(("red", "green", "blue")):
        made[name] = tmp_path_factory.mktemp(name)
        for i in range(3):
            film = np.zeros((8, 24, 40, 3), np.uint8)
            film[..., colour] = 100 + 40 * i
            if name == "green":
                Image.fromarray(film[0]).save(made[name] / f"{i}.png")
            else:
                codec.write(made[name] / f"{i}.mp4", film, 8.0)
    return made


@pytest.mark.parametrize(("weights", "batch", "devices", "shares"), [
    ((3, 1), 16, 1, (12, 4)), ((3, 1), 16, 2, (12, 4)), ((1, 1, 1), 8, 1, (3, 3, 2)), ((1000, 1), 8, 2, (6, 2)),
    ((1, 2), 3, 1, (1, 2)),
])
def test_shapes_share_a_batch_by_weight_and_none_goes_without(weights, batch, devices, shares):
    corpora = [Corpus(weight=float(w), frames=2 * (i + 1)) for i, w in enumerate(weights)]
    parts = run_of(*corpora, batch=batch).parts(devices)
    assert tuple(part.run.batch for part in parts) == shares
    assert [part.model.frames for part in parts] == [2 * (i + 1) for i in range(len(weights))]


def test_corpora_of_one_shape_are_one_part_and_too_small_a_batch_is_refused():
    (part,) = run_of(Corpus(path="a"), Corpus(path="b", frames=4, size=16)).parts()
    assert (part.corpus.path, part.mix[0].path, part.run.batch) == ("a", "b", 12)
    with pytest.raises(config.ConfigError, match=r"run\.batch = 2: .* nearest: 4"):
        run_of(Corpus(), Corpus(frames=2), batch=2).parts(2)


def test_a_mix_comes_back_from_json():
    made = run_of(Corpus(path="a"), Corpus(path="b", size=(16, 24)))
    assert config.from_json(config.Pretrain, config.to_json(made)) == made
    before, after = config.to_json(made).split('"mix"')
    with pytest.raises(config.ConfigError, match=r"mix\.0\.flyp"):
        config.from_json(config.Pretrain, before + '"mix"' + after.replace('"flip"', '"flyp"'))


def read(folders, corpora, batch=8, **shape):
    sources = [(manifest.load(folders[c.path]), c) for c in corpora]
    ledger = Ledger(folders["red"] / "bad_files.csv", [path for m, _ in sources for path in m.paths], 0.5)
    return mixed(sources, **{"frames": 4, "size": 16, **shape}, batch=batch, seed=0, ledger=ledger)


def colours(video):
    return Counter(np.argmax(video.mean((1, 2, 3)), axis=1).tolist())


def test_corpora_come_by_their_weights_and_alone_one_is_what_it_was(folders):
    some = [Corpus(path="red", weight=3.0), Corpus(path="blue", weight=1.0)]
    data = iter(read(folders, some))
    assert sum((colours(next(data)["video"]) for _ in range(5)), Counter()) == {0: 30, 2: 10}
    alone = read(folders, some[:1])
    source = manifest.load(folders["red"])
    plain = clips(source, some[0], frames=4, size=16, batch=8, seed=0, ledger=Ledger(folders["red"] / "b.csv", [], 0.5))
    np.testing.assert_array_equal(next(iter(alone))["video"], next(iter(plain))["video"])


def test_images_are_clips_and_frames_need_not_be_square(folders):
    video = next(iter(read(folders, [Corpus(path="green")], frames=2, size=(16, 24))))["video"]
    assert video.shape == (8, 2, 16, 24, 3)
    np.testing.assert_array_equal(video[:, 0], video[:, 1])
    assert set(colours(video)) == {1} and set(np.unique(video[..., 1])) == {100, 140, 180}


def test_a_folder_of_videos_is_not_polluted_by_its_thumbnails(folders, tmp_path):
    codec.write(tmp_path / "a.mp4", np.zeros((4, 16, 16, 3), np.uint8), 8.0)
    Image.new("RGB", (16, 16)).save(tmp_path / "a.jpg")
    assert [clip.path.name for clip in manifest.load(tmp_path).clips] == ["a.mp4"]


def test_batches_of_all_shapes_have_one_state(folders):
    red, blue = Corpus(path="red"), Corpus(path="blue")
    both = together([read(folders, [red], batch=2), read(folders, [blue], batch=3, frames=2)])
    data = iter(both)
    next(data)
    state = data.get_state()
    ahead = next(data)
    again = iter(both)
    again.set_state(state)
    for one, other in zip(ahead, next(again), strict=True):
        np.testing.assert_array_equal(one["video"], other["video"])
    assert [one["video"].shape[:2] for one in ahead] == [(2, 4), (3, 2)]


def test_the_gradient_of_a_mixed_batch_is_that_of_the_mean_over_its_clips():
    """After one step Adam's first moment is a tenth of the gradient: linear in it, unlike the parameters."""
    made = run_of(Corpus(weight=2.0), Corpus(frames=2, size=(8, 16)), mask=config.Mask(kinds=("random",)))
    parts = made.parts(jax.device_count())
    assert [part.run.batch for part in parts] == [8, 4]
    rng = np.random.default_rng(0)
    videos = tuple(jnp.array(rng.integers(0, 256, (p.run.batch, p.model.frames, *p.model.sides, 3)), jnp.uint8)
                   for p in parts)
    params = drawn(build(MODEL))
    state = train.initialise(build(MODEL), made, params)

    def found(settings, shown):
        after, metrics = compiled(train.make_step(settings))(state, shown)
        return optax.tree.get(after.optimiser, "mu"), metrics["loss"]

    alone = [found(part, (video,)) for part, video in zip(parts, videos, strict=True)]
    near(found(made, videos), jax.tree.map(lambda a, b: (8 * a + 4 * b) / 12, *alone), 1e-6)
