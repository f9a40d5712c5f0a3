"""Numbers that change over a run: learning rate, weight decay and the teacher's momentum, as optax schedules.

A schedule is a pure function of the step, counted from 0. V-JEPA raises its counter before it reads it, so that its
learning rate and weight decay of step i stand at i + 1; its momentum of step i stands at i. So it is here.
Source: V-JEPA 2 (arXiv 2506.09985), section 2 and appendix A; EMA and batch size: Busbridge et al., arXiv 2307.13813.
"""

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from cora.meaning import Count, Natural, Positive, Share, Weight
from cora.schema import guard

Step = Int[Array, ""] | int
Schedule = Callable[[Any], Float[Array, ""]]
"""As optax has it: step -> number."""


def _next(step: Step) -> Float[Array, ""]:
    return jnp.asarray(step, float) + 1


def _half_cosine(first: float, last: float, progress: Float[Array, ""]) -> Float[Array, ""]:
    return last + (first - last) * 0.5 * (1 + jnp.cos(jnp.pi * jnp.clip(progress, 0, 1)))


@guard
def warmup_constant(start: Weight, peak: Weight, warmup: Natural) -> Schedule:
    """Returns a line from `start` to `peak` in `warmup` steps, and `peak` ever after."""

    def at(step: Step) -> Float[Array, ""]:
        now = _next(step)
        return jnp.where(now < warmup, start + (peak - start) * now / max(1, warmup), peak)

    return at


@guard
def warmup_cosine(start: Weight, peak: Weight, end: Weight, warmup: Natural, total: Count) -> Schedule:
    """Returns a line from `start` to `peak` in `warmup` steps, then half a cosine down to `end` at step `total`."""
    rise = warmup_constant(start, peak, warmup)

    def at(step: Step) -> Float[Array, ""]:
        now = _next(step)
        fall = _half_cosine(peak, end, (now - warmup) / max(1, total - warmup))
        return jnp.where(now < warmup, rise(step), fall)

    return at


@guard
def cooldown(peak: Weight, end: Weight, total: Count) -> Schedule:
    """Returns a line from `peak` to `end` in `total` steps."""
    return lambda step: peak + (end - peak) * jnp.minimum(_next(step) / total, 1)


@guard
def cosine(first: Weight, last: Weight, total: Count) -> Schedule:
    """Returns half a cosine from `first` to `last`, up or down, in `total` steps."""
    return lambda step: _half_cosine(first, last, _next(step) / total)


@guard
def linear(first: Weight, last: Weight, total: Positive) -> Schedule:
    """Returns a line from `first` at step 0 to `last` at step `total`, and `last` ever after."""
    return lambda step: first + (last - first) * jnp.minimum(jnp.asarray(step, float) / total, 1)


@guard
def rescaled(lr: Positive, momentum: Share, batch: Positive, steps: Positive) -> tuple[float, float]:
    """Returns a published learning rate and teacher's momentum for a smaller run of the same shape.

    `batch` and `steps` are published number over own number. With Adam the learning rate goes with the root of the
    batch: lr / sqrt(batch). The teacher's memory stays the same share of the run: momentum ** steps, which is the
    EMA rule m ** k for a batch k times as large wherever both runs see equally many clips.
    """
    return lr / math.sqrt(batch), momentum**steps
