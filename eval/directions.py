"""Which way does each rule move each level of a video encoder? Why settling before learning helps or harms.

    uv run python eval/directions.py runs/utd DATA/utd_mhad_depth/manifest.csv --out runs/directions

On the first test clips (no label is used) and masks of the run's own kinds, at the weights with which the run began and
those with which it ended: the cosine of each rule's gradient of a level's blocks with that of the level's own error
(`local`) and with that of all levels' errors end to end (`exact`). Below 0 a rule moves a level against its own error.
Appends a row a rule to OUT/directions.jsonl and prints a table.
"""

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from settle import pictures
from tasks import once, save, table

from cora import train
from cora.nets.hierarchy import build
from cora.pc import diagnose, settled
from cora.pc.energy import Trees
from cora.pc.learn import learn
from cora.pc.presets import ALONE, preset
from cora.store import weights
from cora.types import Network, Params, Sight

Named = tuple[str, int, float]
"""Preset, steps of inference, rate."""
RULES: tuple[Named, ...] = (
    ("pc", 1, 0.005), ("pc", 4, 0.005), ("pc", 16, 0.005), ("pc", 64, 0.005), ("pc", 4, 0.1),
    ("strict", 4, 0.1), ("fixed_pred", 2, 0.1), ("fixed_pred", 4, 0.1), ("fixed_pred", 16, 0.1),
    ("epc", 1, 0.03), ("epc", 4, 0.03),
)
AGAINST: dict[str, Named] = {"own": ("local", 1, 1.0), "all": ("exact", 1, 1.0)}
"""Whose gradients the others are compared with."""


def gradient(network: Network, rule: Named, params: Params, sight: Sight) -> Trees:
    """Returns this rule's gradient of every level's blocks."""
    energy, trees, evidence, _ = settled.problem(network, params, params.encoder, sight)
    name, steps, rate = rule
    pace = () if name in ALONE else (steps, rate)
    found = learn(energy, trees, evidence, preset(name, energy.hierarchy, *pace), sight.key)[0]
    return (found.params[0][0]["blocks"],)  # a level's norm belongs to what reads it: no state error reaches it


def rows(ckpt: Path, source: Path, out: Path, clips: int) -> list[dict[str, Any]]:
    """Returns one row for each state of the weights and each rule: the cosines by level."""
    settings, step, ended, _ = weights.read_run(ckpt)
    network = build(settings.model, settings.target, settings.learn)
    began = jax.jit(lambda *given: train.initialise(network, settings, *given).params)(*train.given(settings))
    shown = jnp.array(pictures(settings, source, ckpt / "bad_files_directions.csv", clips)[0])
    sight = train.look(network, settings, jnp.array(step), shown)
    of = jax.jit(partial(gradient, network), static_argnums=0)
    found = []
    for after, params in ((0, began), (step, ended)):
        against = {name: of(rule, params, sight) for name, rule in AGAINST.items()}
        for rule in RULES:
            def cosines(rule: Named = rule, params: Params = params, against: Any = against) -> dict[str, Any]:
                own = of(rule, params, sight)
                return {name: diagnose.cosine(own, other).tolist() for name, other in against.items()}

            named = {"ckpt": str(ckpt), "step": after, "rule": rule[0], "steps": rule[1], "rate": rule[2]}
            found.append(once(out / "directions.jsonl", named, cosines))
    return found


def main() -> None:
    """Measures one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ckpt", type=Path)
    parser.add_argument("manifest", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--clips", type=int, default=16)
    given = parser.parse_args()
    lines = []
    for row in rows(given.ckpt, given.manifest, given.out, given.clips):
        cells = [", ".join(f"{x:.2f}" for x in row[name]) for name in AGAINST]
        lines.append([f"{row['rule']}, {row['steps']} at {row['rate']:g}", str(row["step"]), *cells])
    head = ["rule", "weights after step", "cosine with its own error, lowest level first", "with all levels' errors"]
    save(given.out, "directions", table(head, lines))


if __name__ == "__main__":
    main()
