"""Laws of the target without a teacher: known directions, what it must not see, and that every rule learns by it."""

import math
from dataclasses import replace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import compiled, drawn

from cora import config
from cora.measure import attentive, evaluation, features
from cora.nets import hog3d
from cora.nets.hierarchy import build, standardise
from cora.nets.vit import patchify, unpatchify
from cora.pc import masks, rules, settled, topdown
from cora.types import Sight

MODEL = config.Model(frames=4, size=32, patch=8, tubelet=2, width=24, heads=2, levels=2, blocks=1,
                     predictor_width=12, predictor_heads=1)
TARGET = config.Target(kind="hog3d", error="squared")


def ramp(x=0.0, y=0.0, t=0.0):
    """A clip whose brightness rises steadily along (x, y, t)."""
    frames, rows, columns = jnp.meshgrid(*(jnp.arange(n, dtype=jnp.float32) for n in (4, 32, 32)), indexing="ij")
    return jnp.broadcast_to((x * columns + y * rows + t * frames)[None, ..., None], (1, 4, 32, 32, 3))


def test_unpatchify_undoes_patchify():
    clips = jax.random.normal(jax.random.key(0), (2, 4, 32, 16, 3))
    np.testing.assert_array_equal(unpatchify(patchify(clips, 2, 8), (2, 4, 2), 2, 8), clips)


def test_gradients_are_central_differences_with_the_edges_continued():
    grey = np.random.default_rng(0).normal(size=(2, 4, 5, 6)).astype(np.float32)
    ways = [np.gradient(np.pad(grey, [(0, 0), (1, 1), (1, 1), (1, 1)], "edge"), axis=axis)[:, 1:-1, 1:-1, 1:-1]
            for axis in (3, 2, 1)]
    np.testing.assert_allclose(hog3d.gradients(jnp.array(grey)), np.stack(ways, -1), atol=1e-6)


@pytest.mark.parametrize("axis", range(12))
def test_a_steady_slope_along_an_axis_is_known_by_its_own_channel(axis):
    x, y, t = hog3d.AXES[axis].tolist()
    found = hog3d.histograms(ramp(x, y, t), MODEL, 1, 0.07).reshape(2, 4, 4, 12)[:, 1:3, 1:3]
    expected = np.maximum(0, hog3d.AXES @ hog3d.AXES[axis])
    expected = expected / np.sqrt((expected**2).sum() + 0.07**2)
    inner = np.asarray(found) * np.ones((2, 2, 2, 12))
    assert (inner.argmax(-1) == axis).all()
    if abs(t) < 1e-6:  # at the first and last frame, where edges are continued, slopes in time are halved
        np.testing.assert_allclose(inner, np.broadcast_to(expected, inner.shape), atol=1e-3)


def test_neither_brightness_nor_what_is_uniform_is_seen_and_contrast_is_divided_out():
    clips = 3 * jax.random.normal(jax.random.key(1), (2, 4, 32, 32, 3))
    own = hog3d.histograms(clips, MODEL, 2, 0.07)
    np.testing.assert_allclose(hog3d.histograms(clips + 5, MODEL, 2, 0.07), own, atol=1e-4)
    np.testing.assert_allclose(hog3d.histograms(10 * clips, MODEL, 2, 0.07), own, atol=0.01)
    assert float(jnp.max(hog3d.histograms(jnp.ones_like(clips), MODEL, 2, 0.07))) < 1e-3


def test_gradients_far_below_the_contrast_keep_how_strong_they_are():
    clips = 1e-2 * jax.random.normal(jax.random.key(1), (2, 4, 32, 32, 3))
    twice, once = (hog3d.histograms(scale * clips, MODEL, 2, 1.0) for scale in (2.0, 1.0))
    np.testing.assert_allclose(twice, 2 * once, rtol=0.02, atol=2e-4)
    with pytest.raises(config.ConfigError, match=r"target\.contrast = 0"):
        config.Target(kind="hog3d", contrast=0.0)


def test_a_blur_keeps_what_is_even_and_leaves_of_an_edge_the_slope_that_it_says():
    even = jnp.full((1, 4, 32, 32), 3.0)
    np.testing.assert_allclose(hog3d.blurred(even, 2.0), even, atol=1e-5)
    edge = jnp.zeros((1, 4, 32, 32)).at[..., 16:].set(1.0)  # between the columns 15 and 16
    for sigma in (1.0, 2.0, 3.0):
        slope = hog3d.gradients(hog3d.blurred(edge, sigma))[0, 2, 16, :, 0]
        np.testing.assert_allclose(slope[15:17], math.erf(1 / (sigma * 2**0.5)) / 2, rtol=0.08)
        np.testing.assert_allclose(jnp.sum(slope[8:24]), 1.0, atol=0.02)
    np.testing.assert_allclose(hog3d.blurred(jnp.swapaxes(edge, 2, 3), 2.0),
                               jnp.swapaxes(hog3d.blurred(edge, 2.0), 2, 3), atol=1e-6)


def test_an_edge_as_high_as_the_contrast_says_looks_alike_under_every_blur():
    """The contrast follows what the blur leaves of a slope: cells that an edge crosses have the same energy."""
    edge = jnp.broadcast_to((jnp.arange(32) >= 16).astype(jnp.float32)[:, None], (1, 4, 32, 32, 3))
    strength = [float(jnp.max(hog3d.histograms(edge, MODEL, 1, 0.42, blur))) for blur in (0.0, 1.0, 2.0)]
    np.testing.assert_allclose(strength, strength[0], rtol=0.3)


def test_cells_are_those_of_their_own_token():
    """What lies deep inside one cell moves the histogram of no other."""
    clips = jnp.zeros((1, 4, 32, 32, 3)).at[0, 1, 8 + 4 + 2, 16 + 2].set(9.0)  # token row 1, column 2; cell (1, 0)
    found = np.asarray(hog3d.histograms(clips, MODEL, 2, 0.07)).reshape(2, 4, 4, 2, 2, 12).sum(-1)
    assert found[0, 1, 2, 1, 0] > 0.5
    found[:, 1, 2, 1, 0] = 0
    assert found.max() < 1e-2


def slopes(maps):
    """max(0, slope · axis)² along the last but three to last axes (t, y, x) of an array, by NumPy's own gradient."""
    ways = [np.gradient(np.pad(maps, [(0, 0), (1, 1), (1, 1), (1, 1)], "edge"), axis=axis)[:, 1:-1, 1:-1, 1:-1]
            for axis in (3, 2, 1)]
    return np.maximum(0, np.einsum("abtyx,ka->kbtyx", np.stack(ways), hog3d.AXES)) ** 2


def test_modulations_are_the_oriented_energies_of_the_maps_of_oriented_energy():
    """Against NumPy, map by map and token by token."""
    clips = np.random.default_rng(0).normal(size=(2, 4, 32, 32, 3))
    first = slopes(clips.mean(-1)).reshape(12, 2, 4, 8, 4, 8, 4).mean((4, 6))
    maps = np.sqrt(first) / np.sqrt(first.sum(0) + 0.3**2)
    second = np.stack([slopes(one) for one in maps])  # [map, axis, B, T, row, column] of cells
    energy = np.zeros((2, 2, 4, 4, 12, 12))
    for t in range(2):
        for y in range(4):
            for x in range(4):
                own = second[:, :, :, 2 * t : 2 * t + 2, 2 * y : 2 * y + 2, 2 * x : 2 * x + 2]
                energy[:, t, y, x] = np.sqrt(own.mean((3, 4, 5))).transpose(2, 0, 1)
    energy /= np.sqrt((energy**2).sum((4, 5), keepdims=True) + 0.05**2)
    found = compiled(lambda clips: hog3d.modulations(clips, MODEL, 4, 0.3))(jnp.array(clips, jnp.float32))
    np.testing.assert_allclose(found, energy.reshape(2, 32, 144), atol=2e-3)
    assert hog3d.count(replace(TARGET, order=2)) == 144


def test_modulations_see_where_energy_changes_and_not_how_bright_or_steady_it_is():
    """A steady slope has none but at the frame's edge; where two halves slope apart, tokens at the border have them."""
    model = replace(MODEL, size=64)

    def read(clips):
        return np.asarray(hog3d.modulations(clips, model, 4, 0.07)).reshape(-1, 2, 8, 8, 144)[:, :, 2:-2, 2:-2]

    columns = jnp.broadcast_to(jnp.arange(64.0)[:, None], (1, 4, 64, 64, 3))
    roof = read(jnp.abs(columns - 31.5))
    assert read(columns).max() < 1e-2 and roof[..., 1:-1, :].max() > 0.2 and roof[:, :, :, [0, -1]].max() < 1e-2
    clips = 3 * jax.random.normal(jax.random.key(1), (2, 4, 64, 64, 3))
    np.testing.assert_allclose(read(clips + 5), read(clips), atol=1e-3)
    np.testing.assert_allclose(read(10 * clips), read(clips), atol=0.02)


@pytest.mark.parametrize("width", [24, 96])
def test_the_turn_into_the_width_keeps_variance_and_where_there_is_room_lengths(width):
    model = replace(MODEL, width=width)
    patches = jax.random.normal(jax.random.key(2), (3, 32, 2 * 64 * 3))
    goal = np.asarray(hog3d.goal(model, TARGET)(patches))
    assert goal.shape == (3, 32, width)
    np.testing.assert_allclose(goal.mean((0, 1)), 0, atol=1e-4)
    if width == 96:
        assert abs(np.square(goal).mean() - 1) < 1e-2
        clips = unpatchify(patches, model.grid, 2, 8)
        each = [hog3d.histograms(clips, model, n, TARGET.contrast, TARGET.blur) for n in (1, 2)]
        plain = np.concatenate(each, axis=-1).reshape(96, -1)
        plain = (plain - plain.mean(0)) / plain.std(0)
        np.testing.assert_allclose(goal.reshape(96, -1) @ goal.reshape(96, -1).T * 60 / 96, plain @ plain.T, atol=1.5)


def test_both_forms_stand_beside_each_other():
    """Inner products over all channels are the mean of those of the two forms alone, where there is room for all."""
    model, kind = replace(MODEL, width=120, heads=4), {"kind": "hog3d", "error": "squared"}
    patches = jax.random.normal(jax.random.key(2), (3, 32, 2 * 64 * 3))
    whole, change, both = (np.asarray(build(model, config.Target(of=of, **kind)).fixed(patches)).reshape(96, -1)
                           for of in ("whole", "change", "both"))
    np.testing.assert_allclose(both @ both.T, (whole @ whole.T + change @ change.T) / 2, atol=2e-2)


def test_every_rule_learns_by_it_and_no_teacher_is_heard():
    clips = jax.random.randint(jax.random.key(2), (2, 4, 32, 32, 3), 0, 256).astype(jnp.uint8)
    network = build(MODEL, TARGET, config.Learn(top_down=True, seen=0.5))
    params, teacher, other = (drawn(network, i) for i in range(3))
    kind = masks.kinds(config.Mask(kinds=("short",)), MODEL.grid)["short"]
    sight = Sight(network.patches(clips), (masks.sample(jax.random.key(0), kind, 2),))
    goal = rules.gather(network.fixed(sight.patches), sight.masks[0].target)
    for rule in (rules.local, rules.backprop_last):
        rule = compiled(rule, static_argnums=0)
        _, errors = run = rule(network, params, teacher.encoder, sight)
        jax.tree.map(np.testing.assert_array_equal, run, rule(network, params, other.encoder, sight))
        assert float(jnp.min(errors)) > 0
    for goals in (
        compiled(lambda *it: settled.clamped(network, *it)[0].goals[0])(params, teacher.encoder, sight),
        compiled(lambda *it: topdown.climb(network, *it)[2])(params, teacher.encoder, sight),
    ):
        np.testing.assert_allclose(goals[0], jnp.broadcast_to(goal, goals[0].shape), atol=1e-5)


def test_what_does_not_fit_is_refused_with_the_nearest_that_does():
    with pytest.raises(config.ConfigError, match=r"must divide model\.patch = 8; nearest: 2"):
        config.Pretrain(model=MODEL, target=config.Target(kind="hog3d", cells=(1, 3)))
    with pytest.raises(config.ConfigError, match=r"target\.grain = 3: must divide model\.patch = 8; nearest: 2"):
        config.Pretrain(model=MODEL, target=config.Target(kind="hog3d", order=2, grain=3))
    with pytest.raises(config.ConfigError, match=r"target\.blur = -1.0: must be at least 0.0; nearest: 0.0"):
        config.Target(kind="hog3d", blur=-1.0)
    with pytest.raises(config.ConfigError, match=r"only hog3d has both, .* nearest: 'change'"):
        config.Target(of="both")
    with pytest.raises(config.ConfigError, match=r"asks for others; nearest: 'local'"):
        config.Pretrain(model=MODEL, target=TARGET, learn=config.Learn(rule="dense"))


def test_what_is_read_without_a_network_is_of_each_clip_alone_and_ends_in_its_place():
    target = config.Target(kind="hog3d", cells=(1, 2))
    measures = features.Measures(config.Pretrain(model=MODEL, target=target))
    video = np.random.default_rng(0).integers(0, 256, (3, 4, 32, 32, 3)).astype(np.uint8)
    found = measures(video)
    np.testing.assert_allclose(found[:, :1], measures(video[:1]), atol=1e-5)
    clips = standardise(jnp.array(video))
    for cells, here in ((1, slice(0, 12)), (2, slice(12, 60))):
        own = hog3d.histograms(clips, MODEL, cells, target.contrast, target.blur)
        np.testing.assert_allclose(found[0, :, :, here], own, atol=1e-5)
    place = found[0, 0, :, -sum(MODEL.grid):]
    assert (place.sum(1) == 3).all() and len(np.unique(place, axis=0)) == MODEL.tokens
    assert features.pooled(measures)(video).shape == (1, 3, (2 * 4 + 4 * 4) * measures.model.width)


def test_targets_stand_beside_a_run_that_has_fixed_ones(tmp_path, monkeypatch):
    encoder = features.untrained(config.Pretrain(model=MODEL))
    monkeypatch.setattr(features, "untrained", lambda settings: encoder)
    for kind in ("hog3d", "ema"):
        settings = config.Pretrain(model=MODEL, target=config.Target(kind=kind))
        monkeypatch.setattr(features, "trained", lambda path, s=settings: (s, encoder))
        assert ("targets" in evaluation.encoders(tmp_path)[1]) == (kind == "hog3d")
        assert list(evaluation.encoders(tmp_path, beside=False)[1]) == ["trained"]


@pytest.mark.parametrize("level", [-2, -1, 1])
def test_targets_have_one_level_whichever_is_asked_of_the_encoder(level):
    settings = config.Pretrain(model=MODEL, target=TARGET)
    readable = {"trained": features.Once(features.untrained(settings)),
                "targets": features.Once(features.Measures(settings))}
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 32, 32, 3)).astype(np.uint8)
    read = evaluation.by_token(readable, attentive.Recipe(level=level, of="whole"), beside=False)
    np.testing.assert_array_equal(read["targets"](video)[0], readable["targets"](video)[0].reshape(2, -1))
    np.testing.assert_array_equal(read["trained"](video)[0], readable["trained"](video)[level].reshape(2, -1))
    with pytest.raises(config.ConfigError, match="level = 2"):
        evaluation.by_token(readable, attentive.Recipe(level=2), beside=False)
