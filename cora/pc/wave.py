"""The wavefront of errors: levels that none has reached yet stand at the forward pass, and nothing is computed there.

After a forward pass all state errors are zero, and a descent on states carries them down `reach` levels a step: at its
k-th slope (the first is k = 0) the lowest s_k = max(0, s_0 - k reach) levels have neither slope nor error. What is
above them is a hierarchy of its own, whose input is the highest state that stands.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp

from cora.pc.energy import Energy
from cora.types import Activities, Evidence, State

GROWTH = 1.5
"""Levels are added in stages, each computed as one loop: a stage ends when there would be this many times as many."""


def standing(energy: Energy, evidence: Evidence, reach: int, step: int) -> int:
    """Returns s_k at step k: of how many levels, from the lowest up, slope and error are still zero; below L.

    s_0: a goal or decoder moves its own level first, a decoder also the one below, what is held those in its reach.
    """
    tops = [energy.depth - 1] if evidence.top is None else [energy.depth - 1 - reach]
    low = 0
    none = (None,) * len(energy.hierarchy)
    for level, goal, held in zip(energy.hierarchy, evidence.goals or none, evidence.held or none, strict=True):
        tops += [low] * (goal is not None) + [low - 1] * (level.decode is not None) + [low - reach] * (held is not None)
        low += level.repeat
    return max(0, min(tops) - step * reach)


def stages(energy: Energy, evidence: Evidence, reach: int, steps: int) -> Iterator[tuple[range, int]]:
    """Yields (steps, how many levels stand through all of them), in order."""
    first = 0
    if not steps:
        yield range(0), standing(energy, evidence, reach, 0)
    while first < steps:
        room = int(GROWTH * (energy.depth - standing(energy, evidence, reach, first)))
        last = first
        while last + 1 < steps and energy.depth - standing(energy, evidence, reach, last + 1) <= room:
            last += 1
        yield range(first, last + 1), standing(energy, evidence, reach, last)
        first = last + 1


def cut(energy: Energy, parts: tuple[Any, ...], stand: int) -> tuple[Any, ...]:
    """Returns parameters, value nodes or goals, one entry a Level, without the lowest `stand` levels."""
    if not stand:
        return parts
    kept = []
    for level, part in zip(energy.hierarchy, parts, strict=bool(parts)):
        if stand < level.repeat:
            kept.append(jax.tree.map(lambda x, low=stand: x[low:], part))
        stand = max(0, stand - level.repeat)
    return tuple(kept)


def restore(energy: Energy, parts: tuple[Any, ...], like: tuple[Any, ...], stand: int) -> tuple[Any, ...]:
    """Returns what `cut` left of something like `like`, zeros in place of what it took."""
    if not stand:
        return parts
    rest, whole = list(parts), []
    for level, full in zip(energy.hierarchy, like, strict=True):
        own = rest.pop(0) if stand < level.repeat else jax.tree.map(lambda x: x[:0], full)
        whole.append(jax.tree.map(lambda x, y: jnp.concatenate([jnp.zeros_like(x[: len(x) - len(y)]), y]), full, own))
        stand = max(0, stand - level.repeat)
    return tuple(whole)


def above(energy: Energy, evidence: Evidence, z: Activities, stand: int) -> tuple[Energy, Evidence]:
    """Returns the energy of the levels above the lowest `stand`, and what it is measured on: z_stand is its input."""
    if not stand:
        return energy, evidence
    left, levels, below = stand, [], evidence.input
    for level, part in zip(energy.hierarchy, z, strict=True):
        if left:
            below = state_at(part, min(left, level.repeat) - 1)
        if left < level.repeat:
            levels.append(level._replace(repeat=level.repeat - left))
        left = max(0, left - level.repeat)
    weights = {name: value[stand:] for name in ("precision", "target", "reverse")
               if isinstance(value := getattr(energy, name), tuple)}
    kept = {"goals": cut(energy, evidence.goals, stand), "held": cut(energy, evidence.held, stand)}
    return replace(energy, hierarchy=tuple(levels), **weights), evidence._replace(input=below, **kept)


def state_at(part: State, index: int) -> State:
    """Returns one level's value node out of a stack of them."""
    return jax.tree.map(lambda x: x[index], part)
