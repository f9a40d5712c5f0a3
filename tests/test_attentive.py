"""The attentive probe: the same numbers as Hugging Face's and Meta's, and what its choice of settings may look at."""

import json
from dataclasses import replace
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jaxtyping import TypeCheckError
from laws import compiled, near
from sklearn.linear_model import LogisticRegression

from cora import schema
from cora.measure import attentive, evaluation, features
from cora.measure.baselines import patch_pixels, pixels, placed
from cora.measure.table import Table
from cora.nets import pooler
from cora.nets.vit import apply
from cora.store import probes
from cora.store.weights import WeightsError

ORACLE = Path(__file__).parent / "oracles" / "attentive_pooler.npz"
QUICK = attentive.Recipe(rates=(1e-2, 3e-3), decays=(0.1,), epochs=40, batch=24, depth=0, heads=2)


@pytest.fixture(scope="module", autouse=True)
def quickly():
    """Everything is compiled without optimisation."""
    with pytest.MonkeyPatch.context() as patch:
        fast = compiled(attentive.train.__wrapped__, static_argnames=("probe", "epochs", "batch"))
        patch.setattr(attentive, "train", fast)
        patch.setattr(attentive, "_answer", compiled(attentive._answer.__wrapped__, static_argnames="probe"))
        yield


def tree_of(arrays, depth):
    """Hugging Face's arrays as parameters, by a mapping written out here."""
    linear = lambda at: {"linear": {"kernel": arrays[f"{at}.weight"].T, "bias": arrays[f"{at}.bias"]}}  # noqa: E731
    norm = lambda at: {"scale": arrays[f"{at}.weight"], "bias": arrays[f"{at}.bias"]}  # noqa: E731

    def layer(at, attention, names):
        return {"layer_norm1": norm(f"{at}.layer_norm1"), "layer_norm2": norm(f"{at}.layer_norm2"),
                attention: {name: linear(f"{at}.{attention}.{name}") for name in names},
                "mlp": {name: linear(f"{at}.mlp.{name}") for name in ("fc1", "fc2")}}

    qkv = ("q_proj", "k_proj", "v_proj")
    layers = {f"self_attention_layers_{i}": layer(f"pooler.self_attention_layers.{i}", "self_attn", (*qkv, "out_proj"))
              for i in range(depth)}
    cross = layer("pooler.cross_attention_layer", "cross_attn", qkv)
    return {"pooler": layers | {"cross_attention_layer": cross, "query_tokens": arrays["pooler.query_tokens"]},
            "classifier": linear("classifier")}


@pytest.fixture(scope="module")
def oracle():
    with np.load(ORACLE) as file:
        arrays = dict(file)
    probe = pooler.Classifier(heads=int(arrays["heads"]), depth=2, classes=5)
    return probe, jax.tree.map(jnp.asarray, tree_of(arrays, 2)), arrays


def test_scores_are_those_of_hugging_face(oracle):
    """And of Meta's AttentiveClassifier with Hugging Face's epsilon, which agreed with them to 6e-6."""
    probe, tree, arrays = oracle
    own = jax.eval_shape(lambda: pooler.init(probe, 16, jax.random.key(0)))
    assert jax.tree.map(jnp.shape, tree) == jax.tree.map(jnp.shape, own)
    pooled = compiled(lambda t, x: apply(pooler.Pooler(probe.heads, probe.depth), t["pooler"], x))
    near(pooled(tree, arrays["tokens"]), arrays["pooled"], 1e-4)
    near(compiled(lambda t, x: apply(probe, t, x))(tree, arrays["tokens"]), arrays["scores"], 1e-4)
    # The cross-attention alone: after self-attention no token is so faint that its epsilon would show.
    shallow = {name: leaf for name, leaf in tree["pooler"].items() if not name.startswith("self")}
    near(compiled(lambda t, x: apply(pooler.Pooler(probe.heads, 0), t, x))(shallow, arrays["tokens"]),
         arrays["shallow"], 1e-4)


def test_the_order_of_tokens_is_not_seen(oracle):
    probe, tree, arrays = oracle
    run = compiled(lambda x: apply(probe, tree, x))
    near(run(arrays["tokens"][:, [6, 2, 0, 5, 1, 4, 3]]), run(arrays["tokens"]), 2e-5)


def test_first_weights_shrink_with_depth():
    probe = pooler.Classifier(heads=4, depth=3, classes=64)
    tree = compiled(lambda: pooler.init(probe, 64, jax.random.key(1)))()
    spread = lambda part: float(jnp.std(w := part["linear"]["kernel"])) * w.shape[0] ** 0.5  # noqa: E731
    layers, cross = tree["pooler"], tree["pooler"]["cross_attention_layer"]
    for i in range(3):
        own = layers[f"self_attention_layers_{i}"]
        for part, share in ((own["self_attn"]["q_proj"], 1.0), (own["mlp"]["fc1"], 1.0),
                            (own["self_attn"]["out_proj"], (2, 4, 6)[i] ** -0.5),
                            (own["mlp"]["fc2"], (2, 4, 6)[i] ** -0.5)):
            assert spread(part) == pytest.approx(0.4**0.5 * share, rel=0.05)
    rest = (cross["mlp"]["fc2"], 6**-0.5), (cross["cross_attn"]["v_proj"], 1.0), (tree["classifier"], 1.0)
    for part, share in rest:
        assert spread(part) == pytest.approx(0.4**0.5 * share, rel=0.05)


# --------------------------------------------------------------------------------------------------------- training


def telling(tree):
    """The parameters but the keys' bias: it adds one number to all scores of a query, so its slope is rounding."""
    cross = tree["pooler"]["cross_attention_layer"]
    attn = cross["cross_attn"]
    keys = {"linear": {"kernel": attn["k_proj"]["linear"]["kernel"]}}
    cross = {**cross, "cross_attn": {**attn, "k_proj": keys}}
    return {**tree, "pooler": {**tree["pooler"], "cross_attention_layer": cross}}


def toy(seed=0, groups=6, repeats=4, tokens=6, width=8):
    """Each clip has one of three words at a random place, and what takes it out of the mean at another."""
    rng = np.random.default_rng(seed)
    label = np.tile(np.repeat(np.arange(3), repeats), groups)
    number = np.repeat(np.arange(groups), 3 * repeats)
    words = 4 * np.linalg.qr(rng.normal(size=(width, width)))[0][:4]
    x = 0.3 * rng.normal(size=(len(label), tokens, width)) + words[3]
    for row, word in zip(x, label, strict=True):
        here, there = rng.permutation(tokens)[:2]
        row[here] += words[word] - words[3]
        row[there] -= words[word] + words[3]
    split = np.where(number < groups - groups // 3, "train", "test")
    return Table(x.reshape(1, len(label), -1), label, np.array([f"g{i}" for i in number]), split)


@pytest.fixture(scope="module")
def read():
    table = toy()
    return table, attentive.evaluate(table, 6, QUICK, heads=2)


def test_what_one_token_tells_is_read_where_the_mean_tells_nothing(read):
    table, fitted = read
    mean = table.features[0].reshape(72, 6, 8).mean(1)
    fit = table.split == "train"
    linear = LogisticRegression(max_iter=1000).fit(mean[fit], table.label[fit]).score(mean[~fit], table.label[~fit])
    assert linear < 0.6 < 0.9 < fitted.score.accuracy
    assert fitted.score.settings[0] in QUICK.grid and fitted.score.per_level == (fitted.score.accuracy,)


def test_a_grid_trained_at_once_is_each_setting_trained_by_adamw_written_out():
    """Each alone, on a cosine to 0. One batch a pass, so that the order of rows is of no account."""
    table, probe = toy(), pooler.Classifier(heads=2, depth=0, classes=3)
    x, label = jnp.asarray(table.features[0, :8].reshape(8, 6, 8), jnp.float32), jnp.asarray(table.label[:8])
    views = jnp.stack([x, jnp.roll(x, 1, axis=-1)], axis=1)  # each step sees one of every clip
    grid, steps, key = [(3e-2, 0.5), (1e-3, 0.8), (1e-2, 0.0)], 4, jax.random.key(5)
    together = attentive.train(probe, views, label, jnp.asarray(grid), key, epochs=steps, batch=8)
    seen = jax.random.randint(jax.random.fold_in(key, 2), (steps, 1, 8), 0, 2)[:, 0]
    order = jax.vmap(lambda k: jax.random.permutation(k, 8))(jax.random.split(jax.random.split(key)[1], steps))
    assert 0 < int(seen.sum()) < seen.size
    first = compiled(lambda: pooler.init(probe, 8, jax.random.split(key)[0]))()
    loss = lambda w, x, y: -jnp.mean(jax.nn.log_softmax(apply(probe, w, x))[jnp.arange(8), y])  # noqa: E731

    @compiled
    def step(w, m, v, t, rate, decay, x, y):
        g, lr = jax.grad(loss)(w, x, y), rate * (1 + jnp.cos(jnp.pi * t / steps)) / 2
        m = jax.tree.map(lambda m, g: 0.9 * m + 0.1 * g, m, g)
        v = jax.tree.map(lambda v, g: 0.999 * v + 0.001 * g * g, v, g)
        c, d = 1 - 0.9 ** (t + 1), 1 - 0.999 ** (t + 1)
        return jax.tree.map(lambda w, m, v: w - lr * (m / c / (jnp.sqrt(v / d) + 1e-8) + decay * w), w, m, v), m, v

    for i, (rate, decay) in enumerate(grid):
        w, m, v = first, *[jax.tree.map(jnp.zeros_like, first)] * 2
        for t in range(steps):
            mine = order[t]
            w, m, v = step(w, m, v, *map(jnp.asarray, (float(t), rate, decay)), views[mine, seen[t]], label[mine])
        own = jax.tree.map(lambda leaf, i=i: leaf[i], together)
        near(telling(own), telling(w), 1e-5)


def test_a_clip_is_answered_for_by_the_mean_probability_of_its_views():
    """In chunks, for two stacked probes; here most views are outvoted by one that is surer than they."""
    probe = pooler.Classifier(heads=2, depth=0, classes=3)
    tree = compiled(lambda: jax.vmap(lambda key: pooler.init(probe, 8, key))(jax.random.split(jax.random.key(0), 2)))()
    tree = jax.tree.map(lambda leaf: 6 * leaf, tree)
    x = np.random.default_rng(0).normal(size=(20, 3, 6, 8)).astype(np.float32)
    x[:, 0] *= 5
    found = attentive.answer(probe, tree, x)
    by_majority = 0
    for i in range(2):
        own = jax.tree.map(lambda leaf, i=i: leaf[i], tree)
        scores = compiled(lambda own: apply(probe, own, jnp.asarray(x.reshape(60, 6, 8))))(own)
        chance = np.asarray(jax.nn.softmax(scores)).reshape(20, 3, 3)
        np.testing.assert_array_equal(found[i], chance.mean(1).argmax(1))
        votes = np.apply_along_axis(np.bincount, 1, chance.argmax(2), minlength=3)
        by_majority += (found[i] != votes.argmax(1)).sum()
    assert by_majority > 0


# ---------------------------------------------------------------------------------------------------------- choosing


def test_no_test_row_has_a_say(read):
    table, fitted = read
    test = np.flatnonzero(table.split == "test")
    rng = np.random.default_rng(1)
    label, x = table.label.copy(), table.features.copy()
    label[test] = rng.permutation(label[test])
    x[:, test] = 30 * rng.normal(size=x[:, test].shape)
    other = attentive.evaluate(table._replace(label=label, features=x), 6, QUICK, heads=2)
    assert (other.score.settings, other.score.held_out) == (fitted.score.settings, fitted.score.held_out)
    assert other.score.accuracy != fitted.score.accuracy
    jax.tree.map(np.testing.assert_array_equal, other.weights, fitted.weights)


def test_the_same_seed_gives_the_same_bits_and_another_one_others(read):
    table, fitted = read
    again = attentive.evaluate(table, 6, QUICK, heads=2)
    assert again.score == fitted.score
    jax.tree.map(np.testing.assert_array_equal, again.weights, fitted.weights)
    other = attentive.evaluate(table, 6, QUICK, heads=2, seed=1)
    kernels = [one.weights["classifier"]["linear"]["kernel"] for one in (other, again)]
    assert not np.array_equal(*kernels)


@pytest.mark.parametrize(("folds", "best"), [(1, 0), (5, 1)])
def test_the_setting_is_the_best_on_the_parts_held_out(monkeypatch, folds, best):
    """Of answers made up for it: the first setting is right of the first part alone, the second of all but one clip."""
    table = toy()
    label, part = table.label[table.split == "train"], attentive.training_folds(table, 0)
    asked = []

    def answer(probe, weights, tokens):
        asked.append((len(jax.tree.leaves(weights)[0]), len(tokens)))
        if asked[-1][0] == 1:
            return np.zeros((1, len(tokens)), int)
        held = len(asked) - 1
        right = label[part == held]
        wrong = (right + 1) % 3
        return np.stack([right, [*wrong[:1], *right[1:]]] if held == 0 else [wrong, right])

    def train(probe, x, given, settings, key, **_):
        if len(settings) > 1:
            np.testing.assert_array_equal(given, label[part != len(asked)])
        return {"w": jnp.asarray(settings)}

    monkeypatch.setattr(attentive, "answer", answer)
    monkeypatch.setattr(attentive, "train", train)
    fitted = attentive.evaluate(table, 6, replace(QUICK, folds=folds), heads=2)
    sizes = np.bincount(part)
    assert len(sizes) > 1
    share = 1.0 if folds == 1 else 1 - 1 / len(label)
    assert fitted.score.held_out == (share,) and fitted.score.settings == (QUICK.grid[best],)
    np.testing.assert_allclose(fitted.weights["w"], QUICK.grid[best])
    assert asked == [(2, size) for size in sizes[:folds]] + [(1, 24)]


@pytest.mark.parametrize(("width", "wanted", "own", "heads"), [(128, 16, 4, 16), (48, 16, 3, 3), (24, 16, 2, 2),
                                                              (64, 16, 2, 16), (128, 0, 4, 4), (192, 5, 3, 3)])
def test_heads_are_the_encoder_s_where_others_do_not_fit(width, wanted, own, heads):
    assert attentive.heads_for(width, wanted, own) == heads


@pytest.mark.parametrize(("name", "changes", "said"), [
    ("meat", {}, "nearest: meta"), ("cpu", {"depth": -1}, "attentive.depth"),
    ("cpu", {"epochs": 0}, "attentive.epochs"), ("cpu", {"folds": 0}, "attentive.folds"),
    ("cpu", {"rates": ()}, "attentive.rates"), ("cpu", {"decays": (-1.0,)}, "attentive.decays")])
def test_a_recipe_that_cannot_be_meant_is_refused(name, changes, said):
    with pytest.raises(schema.ConfigError, match=said):
        attentive.recipe(name, **changes)


def test_meta_s_grid_is_v_jepa_2_s():
    plan = attentive.recipe("meta", depth=None)
    assert len(plan.grid) == 20 and (plan.depth, plan.heads, plan.epochs, plan.of) == (3, 16, 20, "whole")


# -------------------------------------------------------------------------------------------------- tokens, the file


def test_pixel_tokens_are_patches_in_raster_order():
    video = np.random.default_rng(0).integers(0, 256, (2, 4, 8, 12, 3), np.uint8)
    found = patch_pixels(video, 2, 4, 40)  # a square of 4 fits twice into 40
    assert found.shape == (2, 12, 32)
    grey = pixels(video[:, :, :8, :8], frames=4, side=8).reshape(2, 4, 8, 8)
    np.testing.assert_allclose(found[1, 7].reshape(2, 4, 4), grey[1, 2:4, :4, 4:8], rtol=1e-5)
    coarse = patch_pixels(video, 2, 4, 9).reshape(2, 12, 2, 2, 2)
    np.testing.assert_allclose(coarse.mean((3, 4)), found.reshape(2, 12, 2, 16).mean(3), rtol=1e-5)
    with pytest.raises(ValueError, match="width = 1"):
        patch_pixels(video, 2, 4, 1)


def test_a_token_ends_in_its_place_where_that_fits():
    tokens = np.random.default_rng(0).normal(size=(2, 12, 5)).astype(np.float32)
    found = placed(tokens, (2, 2, 3), 14)
    np.testing.assert_array_equal(found[..., :5], tokens)
    assert not found[..., 5:7].any()
    for token, (t, row, column) in enumerate(np.ndindex(2, 2, 3)):
        assert np.flatnonzero(found[1, token, 7:]).tolist() == [t, 2 + row, 4 + column]
    assert not placed(tokens, (2, 2, 3), 11)[..., 5:].any()  # room for six of seven


def test_change_has_no_mean_over_time():
    z = np.random.default_rng(0).normal(size=(3, 12, 5)).astype(np.float32)
    change = features._said(z, (4, 1, 3), "change").reshape(3, 4, 3, 5)
    np.testing.assert_allclose(change.mean(1), 0, atol=1e-6)
    np.testing.assert_allclose(change[:, 1] - change[:, 0], z[:, 3:6] - z[:, :3], rtol=1e-4, atol=1e-6)
    assert np.array_equal(features._said(z, (4, 1, 3), "whole").ravel(), z.ravel())


def test_places_are_told_apart_in_a_code_that_is_smooth_and_half_as_large_as_the_tokens():
    grid = (8, 4, 5)
    code = features.waves(grid, 48)
    assert code.shape == (160, 48) and np.square(code).mean() == pytest.approx(1)
    gap = np.linalg.norm(code[:, None] - code, axis=2)
    steps = np.abs(np.indices(grid).reshape(3, -1, 1) - np.indices(grid).reshape(3, 1, -1)).sum(0)
    assert gap[steps > 0].min() > 1 and gap[steps == 1].mean() < 0.7 * gap[steps > 4].mean()
    each = code.reshape(*grid, -1)
    near, ends = (np.linalg.norm(apart, axis=-1).mean() for apart in (np.diff(each, axis=0), each[-1] - each[0]))
    assert ends > 1.4 * near  # no circle: the clip's end is far from its beginning
    z = 7 * np.random.default_rng(0).normal(size=(2, 160, 48)).astype(np.float32)
    z[1] *= 3
    told = features._said(z, grid, "placed").reshape(z.shape) - z
    for clip, tokens in zip(told, z, strict=True):
        np.testing.assert_allclose(clip, 0.5 * np.sqrt(np.square(tokens).mean()) * code, atol=1e-4)


def test_a_saved_probe_answers_as_before(read, tmp_path):
    _, fitted = read
    probe = probes.Probe(fitted.weights, 2, 0, 3, "change", ("ü", "b", "c"), 400)
    probes.save_probe(tmp_path, probe)
    again = probes.load_probe(tmp_path)
    assert again._replace(weights=None) == probe._replace(weights=None)
    assert jax.tree.structure(again.weights) == jax.tree.structure(fitted.weights)
    jax.tree.map(np.testing.assert_array_equal, again.weights, fitted.weights)
    with pytest.raises(WeightsError, match=r"no probe_attentive\.json"):
        probes.load_probe(tmp_path / "nowhere")
    facts = json.loads((tmp_path / "probe_attentive.json").read_text())
    (tmp_path / "probe_attentive.json").write_text(json.dumps(facts | {"labels": ["a"]}))
    with pytest.raises(WeightsError, match="1 labels for 3 outputs"):
        probes.load_probe(tmp_path)
    former = {name: fact for name, fact in facts.items() if name != "step"} | {"format": "cora-attentive-probe-1"}
    (tmp_path / "probe_attentive.json").write_text(json.dumps(former))
    with pytest.raises(WeightsError, match="says of which step's encoder"):
        probes.load_probe(tmp_path)


def test_an_unknown_method_is_refused_before_anything_is_read():
    # The tests check annotations; without that, the name itself is refused.
    with pytest.raises((schema.ConfigError, TypeCheckError), match="atentive"):
        evaluation.read(Path("nowhere"), Path("nothing"), methods=("atentive",), ledger=Path("none"))
