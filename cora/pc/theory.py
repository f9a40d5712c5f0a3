"""What linear networks settle to, in closed form: the equilibrium of predictive coding without any settling.

For layers z_l = W_l z_{l-1} + e_l, l = 1..L, input z_0 = x, output clamped at y, precisions π_l of the errors:

    F* = 1/2B Σ rᵀ S⁻¹ r,   r = y - W_L…W_1 x,   S = I/π_L + Σ_{l=2}^{L} P_l P_lᵀ / π_{l-1},   P_l = W_L…W_l

The errors are Gaussian noise, so that r has covariance S; S = I would be backprop's loss. π_L is the weight of the
output (λ), whether it is a value node held at y or a readout with a squared error. Forward factors are multiplied into
the weights beforehand; there are no biases (take them off y).
Source: Innocenti et al. 2024, "Only strict saddles in the energy landscape of predictive coding networks?"
"""

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cora.meaning import Positive
from cora.schema import guard

Matrices = Sequence[Float[Array, "_ _"]]
"""W_1 … W_L, each [units of l, units of l-1]."""
Precision = Positive | tuple[Positive, ...]
"""π of every layer: one number, or one a layer with the output's last."""


def spread_out(precision: Precision, layers: int) -> tuple[float, ...]:
    """Returns one precision a layer; raises ValueError where their number is another."""
    every = precision if isinstance(precision, tuple) else (precision,) * layers
    if len(every) != layers:
        raise ValueError(f"precision = {precision}: has {len(every)} entries; these weights have {layers} layers")
    return every


def maps(weights: Matrices, residual: bool = False) -> tuple[Float[Array, "_ _"], ...]:
    """Returns the layers' whole maps: W_l + I for hidden layers 1 < l < L of a residual chain, else W_l."""
    last = len(weights) - 1
    return tuple(w + jnp.eye(w.shape[0], dtype=w.dtype) if residual and 0 < i < last else w
                 for i, w in enumerate(weights))


@guard
def rescaling(weights: Matrices, precision: Precision = 1.0, residual: bool = False) -> Float[Array, "d d"]:
    """Returns S = I/π_L + Σ_{l=2}^{L} P_l P_lᵀ / π_{l-1}: what the output's squared error is divided by, [d, d]."""
    layers, pi = maps(weights, residual), spread_out(precision, len(weights))
    above = jnp.eye(layers[-1].shape[0], dtype=layers[-1].dtype)
    s = above / pi[-1]
    for w, below in zip(layers[:0:-1], pi[-2::-1], strict=True):
        above = above @ w
        s = s + above @ above.T / below
    return s


@guard
def equilibrium_energy(
    weights: Matrices, x: Float[Array, "B i"], y: Float[Array, "B d"], precision: Precision = 1.0,
    residual: bool = False,
) -> Float[Array, ""]:
    """Returns F* = 1/2B Σ rᵀ S⁻¹ r, the mean over the batch of the energy at rest."""
    out = x
    for w in maps(weights, residual):
        out = out @ w.T
    r = y - out
    return jnp.mean(jnp.sum(r * jnp.linalg.solve(rescaling(weights, precision, residual), r.T).T, axis=1)) / 2


@guard
def energy_gradient(
    weights: Matrices, x: Float[Array, "B i"], y: Float[Array, "B d"], precision: Precision = 1.0,
    residual: bool = False,
) -> tuple[Float[Array, "_ _"], ...]:
    """Returns dF*/dW_l of every layer, shaped as W_l: the gradient that fully settled predictive coding learns from.

    At rest dF/dz = 0, so that this total derivative is also the local one at the states z*.
    """
    return jax.grad(lambda w: equilibrium_energy(w, x, y, precision, residual))(tuple(weights))


def blocks(
    weights: Matrices, precision: Precision = 1.0, residual: bool = False
) -> tuple[list[Float[Array, "_ _"]], list[Float[Array, "_ _"]]]:
    """Returns H's diagonal blocks π_l I + π_{l+1} W_{l+1}ᵀ W_{l+1} and the blocks -π_{l+1} W_{l+1}ᵀ right of them."""
    layers, pi = maps(weights, residual), spread_out(precision, len(weights))
    diagonal = [pi[i] * jnp.eye(w.shape[1], dtype=w.dtype) + pi[i + 1] * w.T @ w for i, w in enumerate(layers[1:])]
    right = [-pi[i + 1] * w.T for i, w in enumerate(layers[1:-1])]
    return diagonal, right


@guard
def activity_hessian(weights: Matrices, precision: Precision = 1.0, residual: bool = False) -> Float[Array, "n n"]:
    """Returns H, the second derivative of one sample's F in its hidden states z_1 … z_{L-1} (n units in all)."""
    diagonal, right = blocks(weights, precision, residual)
    rows = []
    for i, own in enumerate(diagonal):
        row = [jnp.zeros((own.shape[0], other.shape[0]), own.dtype) for other in diagonal]
        row[i] = own
        if i > 0:
            row[i - 1] = right[i - 1].T
        if i < len(right):
            row[i + 1] = right[i]
        rows.append(row)
    return jnp.block(rows)


@guard
def equilibrium_states(
    weights: Matrices, x: Float[Array, "B i"], y: Float[Array, "B d"], precision: Precision = 1.0,
    residual: bool = False,
) -> tuple[Float[Array, "B _"], ...]:
    """Returns the hidden states z*_1 … z*_{L-1} at rest, H z* = b with b_1 = π_1 W_1 x, b_{L-1} += π_L W_Lᵀ y.

    H is block tridiagonal: one elimination upwards and one substitution downwards take O(L) solves of one level.
    """
    layers, pi = maps(weights, residual), spread_out(precision, len(weights))
    diagonal, right = blocks(weights, precision, residual)
    b = [jnp.zeros((x.shape[0], own.shape[0]), own.dtype) for own in diagonal]
    b[0] = b[0] + pi[0] * x @ layers[0].T
    b[-1] = b[-1] + pi[-1] * y @ layers[-1]
    for i, beside in enumerate(right):
        factor = jnp.linalg.solve(diagonal[i], beside).T
        diagonal[i + 1] = diagonal[i + 1] - factor @ beside
        b[i + 1] = b[i + 1] - b[i] @ factor.T
    z = [jnp.linalg.solve(diagonal[-1], b[-1].T).T]
    for own, beside, rest in zip(diagonal[-2::-1], right[::-1], b[-2::-1], strict=True):
        z.append(jnp.linalg.solve(own, (rest - z[-1] @ beside.T).T).T)
    return tuple(z[::-1])
