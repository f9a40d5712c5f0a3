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
from cora.pc import settled
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


@cache
def cut():
    network = build(given()[1])
    return compiled(network.patches)(given()[0]["clips"])


@cache
def own():
    """Cora's step, compiled: a function of parameters, teacher, patches and masks."""
    model = given()[1]
    network = build(model, learn=hugging_face.ONE)
    rule = settled.rule_of(hugging_face.ONE, config.Infer(), model, config.Target())
    return compiled(lambda params, teacher, patches, masks: rule(network, params, teacher, Sight(patches, masks)))


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
    assert there["largest"].min() > 1e-6  # no gradient vanishes by itself
    tokens = found["predictor.embeddings.mask_tokens"]  # of three; two kinds of mask
    assert np.abs(tokens[:2]).max(axis=(1, 2, 3)).min() > 0 and not tokens[2].any()


DEFECTS = ("kinds of mask swapped", "one mask token for both kinds", "the teacher sees the visible tokens alone",
           "the learner is its own teacher")


@pytest.mark.parametrize("name", DEFECTS)
def test_a_defect_is_told_from_metas_loss(name):
    there, _, params, teacher, masks = given()
    patches = cut()
    order = {"kinds of mask swapped": [1, 0, 2], "one mask token for both kinds": [0, 0, 0]}.get(name, [0, 1, 2])
    tokens = params.predictors["mask_tokens"][:, np.array(order)]
    params = params._replace(predictors={**params.predictors, "mask_tokens": tokens})
    if name == "the teacher sees the visible tokens alone":  # the learner sees no others: blanks alter its teacher only
        seen = np.zeros(patches.shape[:2], np.float32)
        for m in masks:
            np.put_along_axis(seen, np.array(m.context), 1, axis=1)
        patches = patches * seen[..., None]
    if name == "the learner is its own teacher":
        teacher = params.encoder
    _, error = own()(params, teacher, patches, masks)
    assert abs(error[0] / there["loss"] - 1) > 1e-4, error
