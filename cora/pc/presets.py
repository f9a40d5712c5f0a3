"""The algorithms of the field by name: each is a choice of an inference rule and of a learning rule."""

from collections.abc import Callable
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import jax
import jax.numpy as jnp
from optax import GradientTransformation, sgd

from cora.meaning import Natural, Positive
from cora.pc.how import Inference
from cora.pc.learn import Learning, Rule
from cora.schema import guard, require
from cora.types import Activities, Hierarchy, Level

STEPS, RATE, TURNS = 20, 0.1, 8
"""How many steps on the states, and how large, where nothing is said; TURNS: of `zil_pc`, the tutorial's."""


def _descent(steps: int, rate: float, **others: Any) -> Inference:
    return Inference(steps=steps, optimiser=sgd(rate), wave=True, **others)


def _pc(levels: list[Level], steps: int, rate: float) -> Rule:
    return _descent(steps, rate), Learning()


def _ipc(levels: list[Level], steps: int, rate: float) -> Rule:
    return Inference(steps=steps, optimiser=sgd(rate)), Learning(when="every")


def _hybrid(levels: list[Level], steps: int, rate: float) -> Rule:
    learning = Learning(when="every", period=max(1, steps // 4), after=steps // 2)
    return Inference(steps=steps, optimiser=sgd(rate)), learning


def _zil_pc(levels: list[Level], steps: int, rate: float) -> Rule:
    need = len(levels) + 1
    require(steps >= need, "preset.steps", steps, f"every layer of {need} needs a turn; nearest: {need}")
    _no_decoders("zil_pc", levels)
    return Inference(steps=steps, optimiser=first_move(1.0, rate)), Learning(when="turns")


def _mcpc(levels: list[Level], steps: int, rate: float) -> Rule:
    return Inference(steps=steps, optimiser=sgd(rate), noise=(2 * rate) ** 0.5), Learning()


def _epc(levels: list[Level], steps: int, rate: float) -> Rule:
    inference = Inference(variable="error", steps=steps, optimiser=sgd(rate))
    return inference, Learning(amplify=1 / min(1.0, rate * steps) if rate * steps else 1.0)


def _hpc(levels: list[Level], steps: int, rate: float) -> Rule:
    _some_decoders("hpc", levels)
    for i, (own, above) in enumerate(pairwise(levels)):
        require(above.decode is not None or own.readout is not None, "preset.hierarchy", f"... level {i + 2} ...",
                f"decodes nothing, and level {i + 1} moves under that alone; nearest: chain.mlp(..., decode=True)")
    return Inference(steps=steps, optimiser=sgd(rate), forward_only=True), Learning()


def _bpc(levels: list[Level], steps: int, rate: float) -> Rule:
    _some_decoders("bpc", levels)
    return _pc(levels, steps, rate)


def _zil(levels: list[Level], steps: int, rate: float) -> Rule:
    _no_decoders("zil", levels)
    return _descent(len(levels) + 1, 1.0, keep="arrival"), Learning()


def _no_decoders(name: str, levels: list[Level]) -> None:
    require(all(level.decode is None for level in levels), "preset.name", name,
            "goes by when the output's error arrives, and decoders have errors of their own from the first step on; "
            "nearest: 'bpc'")


def _some_decoders(name: str, levels: list[Level]) -> None:
    require(any(level.decode is not None for level in levels), "preset.name", name,
            "no level of this hierarchy decodes; nearest: 'pc', or chain.mlp(..., decode=True)")


PRESETS: dict[str, Callable[[list[Level], int, float], Rule]] = {
    "bp": lambda levels, steps, rate: (Inference(variable="error", linearise="forward", steps=1, optimiser=sgd(1.0)),
                                       Learning()),
    "local": lambda levels, steps, rate: (Inference(linearise="forward", steps=1, optimiser=sgd(1.0)), Learning()),
    "pc": _pc,
    "strict": lambda levels, steps, rate: (_descent(steps, rate, keep="stale"), Learning()),
    "pc_ode": lambda levels, steps, rate: (Inference(variable="flow"), Learning()),
    "ipc": _ipc,
    "hybrid": _hybrid,
    "zil": _zil,
    "zil_pc": _zil_pc,
    "epc": _epc,
    "nudged": lambda levels, steps, rate: (_descent(steps, rate), Learning(nudge=0.1)),
    "fixed_pred": lambda levels, steps, rate: (_descent(steps, rate, linearise="forward", keep="stale"), Learning()),
    "accumulate": lambda levels, steps, rate: (Inference(steps=steps, optimiser=sgd(rate)), Learning(when="sum")),
    "mcpc": _mcpc,
    "hpc": _hpc,
    "bpc": _bpc,
}
"""name -> (all levels, steps K, rate η) -> rule. `bpc` is `pc` on levels that also decode; `exact` is `bp`, which
is backprop where the precision of the states is 1.

Sources: pc: PCX, JPC (by SGD). strict, fixed_pred, exact: Torch2PC. pc_ode: JPC. ipc: iPC (arXiv 2212.00720), PCX.
zil: Z-IL (Song et al. 2020), PCX's examples/6_zil.ipynb. zil_pc: the second half of that notebook, where it is called
hybrid. epc: ePC (arXiv 2505.20137). nudged: PCX' benchmark (arXiv 2407.01163), for cross-entropy Cora. accumulate: the
Tutorial. mcpc: PCX's examples/7_mcpc.ipynb. hpc: HPC (Tschantz et al. 2023), JPC. bpc: bPC (arXiv 2505.23415), JPC.
local, hybrid: Cora."""
PRESETS["exact"] = PRESETS["bp"]
ALONE = {"bp": "backprop settles in one step", "exact": "backprop settles in one step",
         "local": "it settles in one step of 1", "pc_ode": "it goes on until the states rest (Inference.duration)",
         "zil": "it takes a step of 1 for every layer"}
"""Presets that say themselves how they settle, and how."""


@guard
def preset(name: str, hierarchy: Hierarchy, steps: Natural | None = None, rate: Positive | None = None) -> Rule:
    """Returns the rule of this name for a hierarchy; K = 20 steps (`zil_pc`: 8, or one a layer) of .1 where not told.

    Raises KeyError naming the nearest name, and ConfigError for a hierarchy that the rule does not fit, or for steps or
    a rate that it does not read.
    """
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, 1, 0.0)[0]
        raise KeyError(f"no preset {name!r}; nearest: {near!r}; all: {', '.join(sorted(PRESETS))}")
    for field, value in (("steps", steps), ("rate", rate)):
        require(value is None or name not in ALONE, f"preset.{field}", value,
                f"nothing reads it under {name!r}: {ALONE.get(name)}; nearest: None")
    levels = [level for level in hierarchy for _ in range(level.repeat)]
    usual = max(TURNS, len(levels) + 1) if name == "zil_pc" else STEPS
    return PRESETS[name](levels, usual if steps is None else steps, RATE if rate is None else rate)


def first_move(first: float, rest: float) -> GradientTransformation:
    """Returns a descent whose rate is `first` at a level's first step that has a slope, `rest` afterwards.

    Source: PCX's sixth tutorial, whose value nodes have an optimiser each, and a schedule from 1 to .1.
    """

    def init(z: Activities) -> tuple[Any, ...]:
        return tuple(jnp.zeros(jax.tree.leaves(part)[0].shape[0], bool) for part in z)

    def update(slope: Activities, moved: tuple[Any, ...], z: Any = None) -> tuple[Activities, tuple[Any, ...]]:
        moves, after = [], []
        for part, before in zip(slope, moved, strict=True):
            rate = jnp.where(before, rest, first)
            moves.append(jax.tree.map(lambda g, r=rate: -g * r.astype(g.dtype).reshape(-1, *(1,) * (g.ndim - 1)), part))
            any_slope = [jnp.any((g != 0).reshape(g.shape[0], -1), axis=1) for g in jax.tree.leaves(part)]
            after.append(before | jnp.any(jnp.stack(any_slope), axis=0))
        return tuple(moves), tuple(after)

    return GradientTransformation(init, update)
