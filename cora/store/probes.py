"""What probes leave in the folder of the encoder that they read, each with the step that it is of.

`probe.json` holds the accuracies, `skill.json` how well hidden tokens are predicted. A trained attentive probe is what
is needed to classify new clips, or to export it:

`probe_attentive.json` holds the choices and the class names, `probe_attentive.safetensors` the weights under the paths
of their tree (`pooler.cross_attention_layer.layer_norm1.scale`).
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import numpy as np

from cora.store.weights import WeightsError, read_arrays, write_arrays
from cora.types import Tree

FORMAT = "cora-attentive-probe-2"
"""The former did not say of which step's encoder it was."""
NAME, SCORES, SKILL = "probe_attentive", "probe.json", "skill.json"
FORECAST, SURPRISE = "forecast.json", "surprise.json"


class Probe(NamedTuple):
    """A classifier of the tokens of one level of an encoder."""

    weights: Tree
    """Of `cora.nets.pooler.Classifier`."""
    heads: int
    """Hugging Face has no number of its own for the probe: it must be the encoder's there."""
    depth: int
    """Self-attention layers before the query."""
    level: int
    """Whose tokens it reads; from 0."""
    of: Literal["whole", "change", "placed"]
    """Whether it reads the tokens as they are, without their mean over time, or told where they are."""
    labels: tuple[str, ...]
    """Name of each class, in the order of the outputs."""
    step: int | None
    """Of training, after which the encoder was read; None for an encoder that was not trained here."""


def save_probe(folder: Path, probe: Probe) -> None:
    """Writes the probe into the folder, over the one that was there."""
    leaves = jax.tree_util.tree_flatten_with_path(probe.weights)[0]
    arrays = {".".join(str(key.key) for key in path): np.asarray(leaf) for path, leaf in leaves}
    write_arrays(folder / f"{NAME}.safetensors", arrays, {"format": FORMAT})
    facts = {name: value for name, value in probe._asdict().items() if name != "weights"}
    (folder / f"{NAME}.json").write_text(json.dumps({"format": FORMAT} | facts, indent=2) + "\n")


def load_probe(folder: Path) -> Probe:
    """Returns the probe that `save_probe` wrote into the folder. Raises WeightsError if there is none, or another."""
    file = folder / f"{NAME}.json"
    if not file.is_file():
        raise WeightsError(f"{folder}: no {file.name}; run `cora probe {folder} MANIFEST --method attentive` first")
    facts = json.loads(file.read_text())
    if facts.pop("format", None) != FORMAT:
        raise WeightsError(f"{file}: not of format {FORMAT!r}, the only one that says of which step's encoder it is; "
                           f"run `cora probe {folder} MANIFEST --method attentive` again")
    tree = tree_of(read_arrays(folder / f"{NAME}.safetensors"))
    probe = Probe(weights=tree, **facts | {"labels": tuple(facts["labels"])})
    outputs = tree["classifier"]["linear"]["kernel"].shape[1]
    if outputs != len(probe.labels):
        raise WeightsError(f"{folder}: {len(probe.labels)} labels for {outputs} outputs; probe again")
    return probe


def scores(folder: Path, step: int | None, name: str = SCORES) -> tuple[dict[str, Any] | None, str]:
    """Returns (the JSON of `cora probe`, or of `cora skill`, in the folder of this step's encoder; why it is left out).

    Without such a file it is (None, ""); where that is of another step, or does not say of which, (None, a sentence).
    """
    file = folder / name
    if not file.is_file():
        return None, ""
    found = json.loads(file.read_text())
    if "step" not in found:
        return None, f"{name} is of an earlier checkout and does not say of which step's encoder it is; measure again"
    if found["step"] != step:
        return None, f"{name} is of step {found['step']}'s encoder, and this one is of step {step}; measure again"
    return found, ""


def tree_of(arrays: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """Returns the tree whose leaves have these dotted paths."""
    tree: dict[str, Any] = {}
    for path, array in arrays.items():
        *parents, last = path.split(".")
        branch = tree
        for name in parents:
            branch = branch.setdefault(name, {})
        branch[last] = array
    return tree
