"""One training step of V-JEPA 2 by Meta's own modules: its loss and every gradient (numbers by eval/parity.py)."""

from functools import cache
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import compiled

from cora import config
from cora.nets.hierarchy import build
from cora.pc import settled, targets
from cora.store import hugging_face, weights
from cora.types import Masks, Params, Sight

ORACLES = Path(__file__).parent / "oracles"


@cache
def given():
    """The numbers, the weights (the teacher's three quarters of the learner's), and both kinds of mask."""
    with np.load(ORACLES / "vjepa2_step.npz") as file:
        there = {name: file[name] for name in file}
    found = weights.load(ORACLES / "vjepa2", 2)
    teacher = jax.tree.map(lambda leaf: np.float32(0.75) * leaf, found.encoder)
    masks = tuple(Masks(*(jnp.asarray(there[f"{part}{i}"], jnp.int32) for part in ("context", "target")))
                  for i in range(2))
    return there, found.model, Params(found.encoder, found.predictors), teacher, masks


def step(target=config.Target()):  # noqa: B008
    """Cora's step as a function of parameters, teacher, patches and masks."""
    model = given()[1]
    network = build(model, target, hugging_face.ONE)
    rule = settled.rule_of(hugging_face.ONE, config.Infer(), model, target)
    return lambda params, teacher, patches, masks: rule(network, params, teacher, Sight(patches, masks))


@cache
def cut():
    network = build(given()[1])
    return compiled(network.patches)(given()[0]["clips"])


@cache
def own():
    return compiled(step())


def test_the_loss_and_every_gradient_are_metas():
    there, model, params, teacher, masks = given()
    slope, error = own()(params, teacher, cut(), masks)
    assert error.shape == (1,) and abs(error[0] / there["loss"] - 1) < 1e-5
    found = hugging_face.tensors(model, weights.named(slope.encoder, slope.predictors))
    assert set(found) == set(there["names"])
    numbers = zip(*(there[name] for name in ("names", "norms", "largest", "places", "entries")), strict=True)
    for name, norm, largest, places, entries in numbers:
        assert abs(np.linalg.norm(found[name]) - norm) <= 1e-4 * norm, name
        np.testing.assert_allclose(found[name].ravel()[places], entries, rtol=0, atol=1e-4 * largest, err_msg=name)
    still = dict(zip(there["names"], there["largest"], strict=True))
    assert sum(size == 0 for size in still.values()) == 0
    tokens = found["predictor.embeddings.mask_tokens"]  # of three; two kinds of mask
    assert np.abs(tokens[:2]).max(axis=(1, 2, 3)).min() > 0 and not tokens[2].any()


def plain(x):
    return x


DEFECTS = {
    "kinds of mask swapped": {"masks": lambda masks: masks[::-1]},
    "one mask token for both kinds": {"tokens": lambda tokens: tokens[:, :1]},
    "targets not normed": {"norm": plain},
    "smooth L1": {"target": config.Target(error="smooth")},
    "the teacher sees the visible tokens alone": {"patches": True},
    "the learner is its own teacher": {"teacher": True},
}


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_told_from_metas_loss(name, monkeypatch):
    there, _, params, teacher, masks = given()
    patches, change = cut(), DEFECTS[name]
    if "tokens" in change:
        params = params._replace(predictors=dict(params.predictors))
        params.predictors["mask_tokens"] = jnp.repeat(params.predictors["mask_tokens"][:, :1], 3, axis=1)
    if "patches" in change:  # the learner is shown nothing else, so that blanks alter its teacher alone
        seen = np.zeros(patches.shape[:2], np.float32)
        for m in masks:
            np.put_along_axis(seen, np.array(m.context), 1, axis=1)
        patches = patches * seen[..., None]
    if "norm" in change:
        monkeypatch.setattr(targets, "layer_norm", change["norm"])
    run = own()
    if "norm" in change or "target" in change:
        made = step(change.get("target", config.Target()))
        run = compiled(lambda *given: (None, made(*given)[1]))
    _, error = run(params, params.encoder if "teacher" in change else teacher, patches,
                   change.get("masks", plain)(masks))
    assert abs(error[0] / there["loss"] - 1) > 1e-3, error
