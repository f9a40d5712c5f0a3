"""What a level is asked to predict: functions of the teacher's normed latents of whole clips."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cora import config

Goal = Callable[[Float[Array, "B N D"]], Float[Array, "B N D"]]


def layer_norm(x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
    """Returns every token with zero mean and unit variance over its channels, no learned scale (V-JEPA's targets)."""
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + 1e-5)


def change(frames: int) -> Goal:
    """Returns the goal z(t, place) - mean over t of z(., place), every channel scaled to unit mean square in the batch.

    What does not move has the target 0, so still backgrounds cost nothing and teach nothing; what is left is what
    the past and the neighbours have to tell about the future and the hidden. `frames` is the number of time steps.
    """

    def goal(x: Float[Array, "B N D"]) -> Float[Array, "B N D"]:
        z = x.reshape(x.shape[0], frames, -1, x.shape[-1])
        z = z - jnp.mean(z, axis=1, keepdims=True)
        return (z * jax.lax.rsqrt(jnp.mean(jnp.square(z), axis=(0, 1, 2), keepdims=True) + 1e-5)).reshape(x.shape)

    return goal


def smooth(gap: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns gap²/2 where |gap| < 1 and |gap| - 1/2 elsewhere (smooth L1)."""
    size = jnp.abs(gap)
    return jnp.where(size < 1, jnp.square(size) / 2, size - 0.5)


def squared(gap: Float[Array, "..."]) -> Float[Array, "..."]:
    """Returns gap²/2: a Gaussian energy of unit precision."""
    return jnp.square(gap) / 2


PENALTIES: dict[str, Callable[[Array], Array]] = {"absolute": jnp.abs, "smooth": smooth, "squared": squared}
"""ρ of every number of t - g; `absolute` is V-JEPA's."""
Error = Callable[[Float[Array, "B M D"], Float[Array, "B M D"]], Float[Array, " B"]]


def error(target: config.Target) -> Error:
    """Returns (predicted g, target t) -> every clip's mean of ρ(t - g) over tokens and channels."""
    penalty = PENALTIES[target.error]
    return lambda predicted, goal: jnp.mean(penalty(goal - predicted), axis=(1, 2))


SUREST = 5.0
"""A log precision stays between this and its negative."""


def log_precision(said: Float[Array, "*n"]) -> Float[Array, "*n"]:
    """Returns s, a predictor's own word on how sure it is, within bounds."""
    return SUREST * jnp.tanh(said / SUREST)


def weighed(predicted: Float[Array, "B M _"], goal: Float[Array, "B M D"]) -> Float[Array, " B"]:
    """Returns every clip's mean over tokens and channels of (t - g)² / 2 + (e^s |t - g|² - s) / 2, where the last
    channel predicted says s, one log precision a token, and |t - g| is held fixed.

    The second term is a Gaussian's energy, by which s is learned; g is learned by the first. Under the Gaussian's
    energy alone tokens in which nothing moves, whose errors are smallest, weigh hundreds of times as much as others.
    (Seitzer et al. 2022, arXiv 2203.09168, with β = 1.)
    """
    gap, s = jnp.mean(jnp.square(goal - predicted[..., :-1]), axis=-1), log_precision(predicted[..., -1])
    return jnp.mean(gap + jnp.exp(s) * jax.lax.stop_gradient(gap) - s, axis=1) / 2


def of(target: config.Target, frames: int) -> Goal:
    """Returns the goal that the config names."""
    return change(frames) if target.of == "change" else layer_norm
