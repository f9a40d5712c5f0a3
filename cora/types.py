"""The nouns that the rest of Cora is written in; this file computes nothing.

Letters in array annotations:
    B clips of a batch      T frames          S side of a frame in pixels
    N tokens of a clip      C context tokens  M target (hidden) tokens
    D width of the encoder  P channels of a patch, tubelet * patch * patch * 3
    L levels                V views of a clip
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from jaxtyping import Array, Float, Int, PRNGKeyArray, UInt8

Key = PRNGKeyArray
Tree = Mapping[str, Any]
"""Parameters of one flax module; where it stands for all levels, every leaf has a leading axis L."""


class Masks(NamedTuple):
    """Which tokens of a clip are seen and which are predicted, as sorted token ids; the two never overlap.

    Token `i` of a grid (t, h, w) stands at time `i // (h w)`, row `i % (h w) // w`, column `i % w`.
    """

    context: Int[Array, "B C"]
    target: Int[Array, "B M"]


class Encoder(NamedTuple):
    """Weights of an encoder: the patch embedding and the stacked levels (blocks and norm of each)."""

    embed: Tree
    levels: Tree


class Params(NamedTuple):
    """All that a run learns: the encoder and one predictor a level (stacked)."""

    encoder: Encoder
    predictors: Tree


class Hierarchy(NamedTuple):
    """The network as pure functions; `tree` is always one level's parameters, never the stack of all."""

    embed: Callable[[Tree, Float[Array, "B K P"]], Float[Array, "B K D"]]
    """z_0 from patches."""
    encode: Callable[[Tree, Float[Array, "B K D"], Int[Array, "B K"]], Float[Array, "B K D"]]
    """f_l: the bottom-up prediction of z_l from z_{l-1} and the ids of its tokens."""
    norm: Callable[[Tree, Float[Array, "B K D"]], Float[Array, "B K D"]]
    """The latents that are read out of a level: its layer-normed value node."""
    predict: Callable[[Tree, Float[Array, "B C D"], Masks], Float[Array, "B M D"]]
    """g_l: predicted latents of the hidden tokens from the normed latents of the context."""
    goal: Callable[[Float[Array, "B N D"]], Float[Array, "B N D"]]
    """t_l from the teacher's normed latents of whole clips."""
    error: Callable[[Float[Array, "B M D"], Float[Array, "B M D"]], Float[Array, ""]]
    """ρ(t - g), a mean over clips, tokens and channels."""
    init: Callable[[Key], Params]
    patches: Callable[[UInt8[Array, "B T S S 3"]], Float[Array, "B N P"]]
    """Standardised tubelets of a clip; pixels 0 to 255."""


class Evidence(NamedTuple):
    """What an energy is measured on: all patches of the clips and, once for each kind of mask, who sees what."""

    patches: Float[Array, "B N P"]
    masks: tuple[Masks, ...]


LearningRule = Callable[[Hierarchy, Params, Encoder, Evidence], tuple[Params, Float[Array, " l"]]]
"""(hierarchy, parameters, teacher, evidence) -> (gradients, target energy of each level that has one: a mean)."""
