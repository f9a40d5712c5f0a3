"""Which way does each rule move each level of a video encoder? Why settling before learning helps or harms.

    uv run python eval/directions.py runs/utd DATA/utd_mhad_depth/manifest.csv --out runs/directions

On the first test clips (no label is used) and masks of the run's own kinds, at the weights with which the run began and
those with which it ended: the cosine of each rule's gradient of a level's blocks with that of the level's own error
(`local`) and with that of all levels' errors end to end (`exact`). Below 0 a rule moves a level against its own error.
Appends a row a rule to OUT/directions.jsonl and prints a table.
"""

import argparse
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float
from settle import pictures
from tasks import once, save, table

from cora import train
from cora.nets.hierarchy import build
from cora.pc import diagnose, settled
from cora.pc.learn import learn
from cora.pc.presets import preset
from cora.store import weights
from cora.types import Network, Params, Sight

RULES: tuple[tuple[str, int, float], ...] = (
    ("pc", 1, 0.005), ("pc", 4, 0.005), ("pc", 16, 0.005), ("pc", 64, 0.005), ("pc", 4, 0.1),
    ("strict", 4, 0.1), ("fixed_pred", 2, 0.1), ("fixed_pred", 4, 0.1), ("fixed_pred", 16, 0.1),
    ("epc", 1, 0.03), ("epc", 4, 0.03),
)
"""Preset, steps of inference, rate."""


def cosines(
    network: Network, params: Params, sight: Sight, rule: tuple[str, int, float]
) -> dict[str, Float[Array, " L"]]:
    """Returns by level the cosine of this rule's gradient of the blocks with that of its own, and of all, errors."""
    energy, trees, evidence, _ = settled.problem(network, params, params.encoder, sight)

    def of(name: str, steps: int = 1, rate: float = 1.0) -> tuple[Any]:
        found = learn(energy, trees, evidence, preset(name, energy.depth, steps, rate), sight.key)[0]
        return (found.params[0][0]["blocks"],)  # a level's norm belongs to what reads it: no state error reaches it

    own = of(*rule)
    return {"own": diagnose.cosine(own, of("local")), "all": diagnose.cosine(own, of("exact"))}


def rows(ckpt: Path, source: Path, out: Path, clips: int) -> list[dict[str, Any]]:
    """Returns one row for each state of the weights and each rule: the cosines by level."""
    settings, step, ended, _ = weights.read_run(ckpt)
    network = build(settings.model, settings.target, settings.learn)
    began = jax.jit(network.init)(jax.random.key(settings.run.seed))
    shown = jnp.array(pictures(settings, source, ckpt / "bad_files_directions.csv", clips)[0])
    sight = train.look(network, settings, jnp.array(step), shown)
    found = []
    for weights_of, params in ((0, began), (step, ended)):
        for rule in RULES:
            @jax.jit
            def measure(params: Params, sight: Sight, rule: Any = rule) -> dict[str, Array]:
                return cosines(network, params, sight, rule)

            named = {"ckpt": str(ckpt), "step": weights_of, "rule": rule[0], "steps": rule[1], "rate": rule[2]}
            found.append(once(out / "directions.jsonl", named, lambda params=params, measure=measure: {
                name: each.tolist() for name, each in measure(params, sight).items()}))
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
        cells = [", ".join(f"{x:.2f}" for x in row[name]) for name in ("own", "all")]
        lines.append([f"{row['rule']}, {row['steps']} at {row['rate']:g}", str(row["step"]), *cells])
    head = ["rule", "weights after step", "cosine with its own error, lowest level first", "with all levels' errors"]
    save(given.out, "directions", table(head, lines))


if __name__ == "__main__":
    main()
