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

from cora.meaning import Count

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


Theta = Any
"""Parameters of one level: any tree of arrays."""
State = Any
"""Value nodes of one level for a batch: an array [B, ...], or a tree of them."""
Context = Any
"""What every level is told besides the level below: the masks of a clip, or nothing."""


class Level(NamedTuple):
    """A level of a hierarchy, or `repeat` of one kind in a row, as pure functions of one level's own parameters.

    A function never sees another level's parameters, so locality needs no stop-gradient. The parameters and value
    nodes of a level are stacked: every leaf has a leading axis of `repeat`, also where that is 1.
    """

    encode: Callable[[Theta, State, Context], State]
    """f_l: the prediction of z_l from z_{l-1}."""
    readout: Callable[[Theta, State, Context], State] | None = None
    """g_l: what z_l predicts of this level's own goal."""
    error: Callable[[State, State], Float[Array, " B"]] | None = None
    """ρ(g_l, goal) of every sample: any loss that is differentiable in its first argument."""
    decode: Callable[[Theta, State, Context], State] | None = None
    """b_l: the prediction of z_{l-1} from z_l (generative and bidirectional hierarchies)."""
    repeat: Count = 1


Hierarchy = tuple[Level, ...]
"""From the input upwards. Its parameters, goals and value nodes are tuples of the same length."""
Activities = tuple[State, ...]
"""Value nodes, errors or predictions: one entry a Level, every leaf [repeat, B, ...]."""


class Hold(NamedTuple):
    """What is held of a Level's value nodes while the rest settles."""

    value: State
    """[repeat, B, ...]: read where the mask is True."""
    mask: State
    """True where a unit is held; of the value's shape, or one that broadcasts to it."""


class Evidence(NamedTuple):
    """What an energy is measured on: whatever of the hierarchy is clamped."""

    input: State
    """z_0, [B, ...]."""
    goals: tuple[State, ...] = ()
    """One entry a Level, [repeat, B, ...]; None where a Level has no readout. Empty: no level has one."""
    context: Context = None
    top: State = None
    """The highest value node where that is clamped, [B, ...]."""
    held: tuple[Hold | None, ...] = ()
    """One entry a Level: any of its value nodes, or part of them, clamped in addition to input and top. Empty: none.
    An input is a value node, of which a part may be held, in a net with a level underneath (`chain.under`)."""


class Sight(NamedTuple):
    """What a video network is shown: all patches of the clips and, once for each kind of mask, who sees what."""

    patches: Float[Array, "B N P"]
    masks: tuple[Masks, ...]
    key: Key | None = None
    """This step's chance, for rules and priors that draw."""
    progress: Float[Array, ""] | float = 1.0
    """How much of the run is done, from 0 to 1."""


class Network(NamedTuple):
    """The video encoder as pure functions; `tree` is one level's parameters, never the stack of all."""

    embed: Callable[[Tree, Float[Array, "B K P"]], Float[Array, "B K D"]]
    """z_0 from patches."""
    encode: Callable[[Tree, Float[Array, "B K D"], Int[Array, "B K"]], Float[Array, "B K D"]]
    """f_l on the tokens with these ids."""
    norm: Callable[[Tree, Float[Array, "B K D"]], Float[Array, "B K D"]]
    """The latents that are read out of a level: its layer-normed value node."""
    goal: Callable[[Float[Array, "B N D"]], Float[Array, "B N D"]]
    """t_l from the teacher's normed latents of whole clips."""
    fixed: Callable[[Float[Array, "B N P"]], Float[Array, "B N D"]] | None
    """t_l from the patches, where no teacher is asked: of every level, or with `below` of the lowest."""
    below: bool
    """Whether t_l is what `goal` makes of the teacher's latents of level l - 1."""
    predict: Callable[..., Any]
    """g_l(tree, normed latents, masks, kind, above=None): what is read of the hidden tokens, [B, M, D]; `above` is what
    the next level predicts of them. Under rule `dense` one predictor for all levels' latents side by side, which
    returns (hidden, context): [B, M, L D] and [B, C, L D]."""
    foresee: Callable[..., tuple[Float[Array, "B M D"], Float[Array, "B M"]]]
    """(what `predict` returns, the log precision of every hidden token): how sure it is, 0 where it does not say."""
    beside: Callable[[Tree, Float[Array, "B C D"]], Float[Array, "B C D"]] | None
    """What is read of the seen tokens off their normed latents, by a part of the predictor's tree; None: nothing."""
    prior: Callable[[Key, list[Float[Array, "B _ D"]]], Float[Array, ""]] | None
    """The weighed energy of a level's normed latents, one array a kind of mask, under their prior."""
    level: Level
    """The level that the hierarchy repeats: its tree is (encoder level, predictor), its state one array a kind of
    mask, its context the masks, its goal the targets of the hidden tokens, one array a kind of mask, and after them
    those of the seen tokens where `beside` reads them."""
    init: Callable[[Key], Params]
    patches: Callable[[UInt8[Array, "B T S S 3"]], Float[Array, "B N P"]]
    """Standardised tubelets of a clip; pixels 0 to 255."""


LearningRule = Callable[[Network, Params, Encoder, Sight], tuple[Params, Float[Array, " l"]]]
"""(network, parameters, teacher, clips and masks) -> (gradients, target energy of each level that has one: a mean)."""
