"""What every contender of the benchmark `pc` computes: one training step of one predictive-coding network."""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import optax


class Problem(NamedTuple):
    """A perceptron f_l = act(W_l z_{l-1} + b_l) with a linear last layer, and how it is trained."""

    sizes: tuple[int, ...]
    act: str
    """Name in jax.nn."""
    steps: int
    """K: descents on the states by plain gradient steps, after a forward pass."""
    rate: float = 0.1
    batch: int = 64

    @property
    def name(self) -> str:
        """The layers and K, for people."""
        hidden = self.sizes[1:-1]
        inner = f"{hidden[0]}x{len(hidden)}" if len(set(hidden)) == 1 else "-".join(map(str, hidden))
        return f"{self.sizes[0]}-{inner}-{self.sizes[-1]} {self.act} K={self.steps}"


class Material(NamedTuple):
    """The same start for everybody."""

    weights: tuple[tuple[np.ndarray, np.ndarray], ...]
    """W [outputs, inputs] and b of every layer, from the input up."""
    x: np.ndarray
    y: np.ndarray


class Contender(NamedTuple):
    """One program, compiled when it is first stepped."""

    step: Callable[[], None]
    """One training step, finished when it returns: forward pass, K state steps, weight gradient, Adam."""
    gradient: Callable[[], list[np.ndarray]]
    """The weight gradients [outputs, inputs] of the first step, read from Adam's first moment."""


def material(problem: Problem, seed: int = 0) -> Material:
    """Returns random weights, inputs and one-hot goals."""
    draw = np.random.default_rng(seed)
    pairs = tuple(
        ((draw.normal(size=(o, i)) * (2 / (o + i)) ** 0.5).astype(np.float32), np.zeros(o, np.float32))
        for i, o in zip(problem.sizes[:-1], problem.sizes[1:], strict=True)
    )
    x = draw.normal(size=(problem.batch, problem.sizes[0])).astype(np.float32)
    y = np.eye(problem.sizes[-1], dtype=np.float32)[draw.integers(problem.sizes[-1], size=problem.batch)]
    return Material(pairs, x, y)


def adam() -> optax.GradientTransformation:
    """Returns the optimiser of the weights."""
    return optax.adam(1e-3, b1=0.9)
