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


def absolute(predicted: Float[Array, "B M D"], target: Float[Array, "B M D"]) -> Float[Array, " B"]:
    """Returns every clip's mean of |t - g| over tokens and channels (V-JEPA's L1)."""
    return jnp.mean(jnp.abs(target - predicted), axis=(1, 2))


def squared(predicted: Float[Array, "B M D"], target: Float[Array, "B M D"]) -> Float[Array, " B"]:
    """Returns every clip's half mean of (t - g)² over tokens and channels: a Gaussian energy of unit precision."""
    return jnp.mean(jnp.square(target - predicted), axis=(1, 2)) / 2


Error = Callable[[Float[Array, "B M D"], Float[Array, "B M D"]], Float[Array, " B"]]
ERRORS: dict[str, Error] = {"absolute": absolute, "squared": squared}


def of(target: config.Target, frames: int) -> Goal:
    """Returns the goal that the config names."""
    return {"whole": layer_norm, "change": change(frames)}[target.of]
