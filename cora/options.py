"""What a run hides of its clips, which error moves which weights, and how they move: three sections of a config
(cora/config.py)."""

from dataclasses import dataclass
from typing import Annotated, Literal, get_args

from cora.meaning import Count, Entries, Fraction, Only, Positive, Range, Rising, Share, Weight
from cora.schema import check, require

Kind = Literal["short", "long", "tube", "random", "future"]
KINDS: tuple[Kind, ...] = get_args(Kind)
Pair = tuple[Fraction, Fraction]
Side = Annotated[float, Range(0.1, 10.0)]


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Which tokens of a clip are hidden, once for each of `kinds`; all of them share one pass of the teacher.

    A pair says which fractions of a clip's tokens are (seen, predicted): exactly so many, whatever was drawn, so that
    shapes are static. What is said of a kind that is not named waits until it is: a recipe may say how each is drawn.
    """

    kinds: Annotated[tuple[Kind, ...], Entries(("short",))] = ("short", "long")
    """Hidden are many small blocks (`short`), few large ones (`long`) or random places (`tube`), for the whole clip;
    `random` single tokens; all that comes later than `cut` (`future`). A kind may be named more than once."""
    compat: Literal["uniform", "meta"] = "uniform"
    """Which tokens of blocks are kept: random ones, or as Meta does the first ones, with one size of block a batch."""
    short: Pair = (0.25, 0.5)
    long: Pair = (0.1, 0.7)
    tube: Pair = (0.25, 0.75)
    random: Pair = (0.25, 0.75)
    future: Pair = (1.0, 1.0)
    """Of what lies before the cut, and of what lies after it."""
    cut: Fraction = 0.5
    """Fraction of the clip's time steps that a future mask lets see."""
    short_blocks: Count = 8
    short_scale: Fraction = 0.15
    """Area of one short block as a fraction of the frame."""
    long_blocks: Count = 2
    long_scale: Fraction = 0.7
    aspect: Annotated[tuple[Side, Side], Rising()] = (0.75, 1.5)

    def __post_init__(self) -> None:
        check("mask", self)
        for name in KINDS:
            seen, asked = getattr(self, name)
            require(seen + asked <= 1 or name == "future", f"mask.{name}", (seen, asked),
                    f"must not sum to more than 1; nearest: {(seen, round(1 - seen, 6))}")


SCANNED = ("local", "backprop_all")
"""Rules that go level by level, in which a level may hear from the one above."""
PRIOR = (*SCANNED, "backprop_last")
"""Rules under which latents may have a prior."""
DIRECT = (*PRIOR, "dense")
"""Rules without inference."""
STEPPED = ("pc", "strict", "epc", "fixed_pred", "accumulate", "mcpc")
"""Rules whose inference takes `infer.steps` steps at `infer.rate`."""
SETTLING = (*STEPPED, "pc_ode", "zil", "exact")
"""Rules of predictive coding; the last three say themselves how they settle."""


@dataclass(frozen=True, kw_only=True)
class Learn:
    """Which error moves which weights."""

    rule: Literal[
        "local", "backprop_last", "backprop_all", "dense",
        "pc", "pc_ode", "strict", "zil", "epc", "fixed_pred", "accumulate", "mcpc", "exact",
    ] = "local"
    """`local`: each level learns from its own target error and nothing crosses a level. `backprop_last` (V-JEPA 2),
    `backprop_all`, `dense` (V-JEPA 2.1): controls, the last level's error, the sum of all levels' errors, or the error
    of one predictor of all levels' latents, differentiated from end to end. The others are predictive coding with
    inference: states settle under all levels' errors, then each level learns."""
    reach: Count = 1
    """With rule `local`: an error teaches its own level and the encoder levels below it, so many in all; as many as
    there are levels is `backprop_all`. Memory grows with the reach, not with depth."""
    top_down: bool = False
    """Predictors also hear what the level above predicts of the hidden tokens (rules `local` and `backprop_all`)."""
    seen: Weight = 0.0
    """Weight of the error on the tokens that are seen, whose targets a linear map reads off a level's latents, beside
    that on the hidden ones, which the predictor has to infer."""
    precision: bool = False
    """Predictors also say how sure they are of each hidden token: a log precision, learned from that token's error by
    the Gaussian's energy; needs target.error = 'squared'. A Hugging Face predictor has no place for it."""
    prior: Weight = 0.0
    """Weight of the prior on every level's latents; its normalisation is in cora/pc/regularise.py."""
    prior_kind: Annotated[Literal["sigreg", "vicreg"], Only("prior")] = "sigreg"
    """`sigreg`: an isotropic Gaussian (LeJEPA); `vicreg`: each channel has a deviation of 1 or more and none repeats
    another (VICReg's variance and covariance, 25 to 1)."""
    prior_of: Annotated[Literal["tokens", "clips"], Only("prior")] = "clips"
    """Whose distribution is held to the prior: every context token's latents, or their mean over a clip."""
    slices: Annotated[Count, Only("prior"), Only("prior_kind", "sigreg")] = 256
    """Random directions, new ones every step, along which SIGReg looks."""
    context: Annotated[Weight, Only("rule", "dense")] = 0.5
    """With rule `dense`: weight of the error on the context tokens beside that on the hidden ones."""
    context_ramp: Annotated[tuple[Share, Share], Rising(), Only("rule", "dense"), Only("context")] = (1 / 9, 2 / 9)
    """Fractions of the run between which that weight rises from 0 (V-JEPA 2.1: steps 15,000 to 30,000 of 135,000)."""
    context_distance: Annotated[bool, Only("rule", "dense"), Only("context")] = True
    """Weigh a context token by 1 / sqrt(distance to the nearest hidden one)."""

    def __post_init__(self) -> None:
        check("learn", self)
        require(self.reach == 1 or (self.rule == "local" and not self.top_down), "learn.reach", self.reach,
                f"is for learn.rule = 'local' without learn.top_down, not {self.rule!r}; nearest: 1")
        require(not self.top_down or self.rule in SCANNED, "learn.top_down", self.top_down,
                f"rule {self.rule!r} knows no level above; nearest: False, or learn.rule = 'local'")
        require(self.seen == 0 or self.rule != "dense", "learn.seen", self.seen,
                "rule 'dense' has learn.context for that; nearest: 0.0")
        require(not self.precision or (self.rule != "dense" and not self.top_down), "learn.precision", self.precision,
                "is for predictors that hear nothing from above, and not for rule 'dense'; nearest: False")
        require(self.prior == 0 or self.rule in PRIOR, "learn.prior", self.prior,
                f"rule {self.rule!r} has no prior on latents; nearest: 0.0, or learn.rule = 'local'")

    @property
    def predictors(self) -> int | None:
        """How many predictors this rule trains; None: one a level."""
        return 1 if self.rule in ("backprop_last", "dense") else None


Below = Annotated[float, Range(0.0, 1.0, below=True)]
WARMED = Only("schedule", "cosine", "constant")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """Weight decay spares biases, scales and the mask tokens. The schedules are in cora/pc/schedules.py."""

    method: Literal["adamw", "muon"] = "adamw"
    """`muon`: every matrix of every level moves along its own orthogonalised momentum (Nesterov, .95), which serves
    faint directions of its input as well as strong ones; an update's root mean square is about .2 of the learning rate,
    so ten times AdamW's is a good one. All else moves by Adam with Nesterov's momentum."""
    schedule: Literal["cosine", "constant", "cooldown"] = "cosine"
    """Of the learning rate: `cosine` from `lr` to `lr_end` or `constant`, both after a warm-up from `lr_start`;
    `cooldown`: a line from `lr` to `lr_end`."""
    lr: Positive = 1e-3
    lr_start: Annotated[Weight, WARMED, Only("warmup")] = 0.0
    lr_end: Annotated[Weight, Only("schedule", "cosine", "cooldown")] = 1e-5
    warmup: Annotated[float, Range(0.0, 1.0, below=True), WARMED] = 0.1
    """Fraction of the steps in which the learning rate rises."""
    stretch: Annotated[float, Range(1.0)] = 1.0
    """Schedules are laid out for so many times the steps, of which the last are never run (V-JEPA: 1.25)."""
    weight_decay: Weight = 0.05
    weight_decay_end: Weight | None = None
    """At the last step, along a cosine; None: as at the first."""
    b1: Below = 0.9
    b2: Below = 0.95
    eps: Positive = 1e-8
    """Added to the denominator of Adam, and under `muon` also to the norm that a matrix' momentum is divided by."""
    clip: Weight = 0.0
    """Largest norm of the gradient of all levels together, which one factor then shortens alike; 0: any."""

    def __post_init__(self) -> None:
        check("optim", self)
        for name in ("lr_start", "lr_end"):
            value, read = getattr(self, name), name == "lr_start" or self.schedule != "constant"
            require(value <= self.lr or not read, f"optim.{name}", value,
                    f"must lie in [0, optim.lr = {self.lr}]; nearest: {self.lr}")
