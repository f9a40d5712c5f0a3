"""The algorithms of the field by name: each is a choice of an inference rule and of a learning rule."""

from collections.abc import Callable
from difflib import get_close_matches
from typing import Any

from optax import sgd

from cora.meaning import Count, Natural, Positive
from cora.pc.infer import Inference
from cora.pc.learn import Learning, Rule
from cora.schema import guard


def _descent(steps: int, rate: float, **others: Any) -> Inference:
    return Inference(steps=steps, optimiser=sgd(rate), wave=True, **others)


def _pc(depth: int, steps: int, rate: float) -> Rule:
    return _descent(steps, rate), Learning()


def _mcpc(depth: int, steps: int, rate: float) -> Rule:
    return Inference(steps=steps, optimiser=sgd(rate), noise=(2 * rate) ** 0.5), Learning()


def _epc(depth: int, steps: int, rate: float) -> Rule:
    inference = Inference(variable="error", steps=steps, optimiser=sgd(rate))
    return inference, Learning(amplify=1 / min(1.0, rate * steps) if rate * steps else 1.0)


PRESETS: dict[str, Callable[[int, int, float], Rule]] = {
    "bp": lambda depth, steps, rate: (Inference(variable="error", linearise="forward", steps=1, optimiser=sgd(1.0)),
                                      Learning()),
    "local": lambda depth, steps, rate: (Inference(linearise="forward", steps=1, optimiser=sgd(1.0)), Learning()),
    "pc": _pc,
    "strict": lambda depth, steps, rate: (_descent(steps, rate, keep="stale"), Learning()),
    "pc_ode": lambda depth, steps, rate: (Inference(variable="flow"), Learning()),
    "ipc": lambda depth, steps, rate: (Inference(steps=steps, optimiser=sgd(rate)), Learning(when="every")),
    "hybrid": lambda depth, steps, rate: (Inference(steps=steps, optimiser=sgd(rate)),
                                          Learning(when="every", period=max(1, steps // 4), after=steps // 2)),
    "zil": lambda depth, steps, rate: (_descent(depth + 1, 1.0, keep="arrival"), Learning()),
    "epc": _epc,
    "nudged": lambda depth, steps, rate: (_descent(steps, rate), Learning(nudge=0.1)),
    "fixed_pred": lambda depth, steps, rate: (_descent(steps, rate, linearise="forward", keep="stale"), Learning()),
    "accumulate": lambda depth, steps, rate: (Inference(steps=steps, optimiser=sgd(rate)), Learning(when="sum")),
    "mcpc": _mcpc,
    "hpc": lambda depth, steps, rate: (Inference(steps=steps, optimiser=sgd(rate), forward_only=True), Learning()),
    "bpc": _pc,
}
"""name -> (depth L, steps K, rate η) -> rule. `bpc` is `pc` on levels that also decode; `exact` is `bp`, which
is backprop where the precision of the states is 1."""
PRESETS["exact"] = PRESETS["bp"]


@guard
def preset(name: str, depth: Count, steps: Natural = 20, rate: Positive = 0.1) -> Rule:
    """Returns the rule of this name for a hierarchy of `depth` levels; raises KeyError naming the nearest."""
    if name not in PRESETS:
        near = get_close_matches(name, PRESETS, 1, 0.0)[0]
        raise KeyError(f"no preset {name!r}; nearest: {near!r}; all: {', '.join(sorted(PRESETS))}")
    return PRESETS[name](depth, steps, rate)
