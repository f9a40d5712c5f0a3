"""The choices and numbers of a run: frozen dataclasses, checked when they are made.

A recipe is a Python file that binds one `Pretrain`; the command line overrides it field by field. This file
knows no array and opens no file; it holds every default in the project.
"""

from dataclasses import dataclass, field
from typing import Literal

from cora.schema import ConfigError as ConfigError
from cora.schema import difference as difference
from cora.schema import fraction, multiple, positive, require, span
from cora.schema import from_json as from_json
from cora.schema import to_json as to_json


@dataclass(frozen=True, kw_only=True)
class Model:
    """The encoder (the topology of V-JEPA 2) cut into `levels` of `blocks` transformer blocks each."""

    frames: int = 16
    size: int = 64
    """Height and width of a clip in pixels."""
    tubelet: int = 2
    patch: int = 16
    width: int = 128
    heads: int = 4
    levels: int = 4
    blocks: int = 1
    """Transformer blocks in each level; the encoder's depth is `levels * blocks`."""
    mlp_ratio: float = 4.0
    rope: Literal["tiled", "interleaved"] = "tiled"
    """`tiled` is V-JEPA 2 and Hugging Face; `interleaved` is V-JEPA 2.1, a true rotation."""
    predictor_width: int = 64
    predictor_depth: int = 1
    predictor_heads: int = 2

    def __post_init__(self) -> None:
        for name in ("width", "heads", "levels", "blocks", "predictor_width", "predictor_depth", "predictor_heads"):
            require(getattr(self, name) >= 1, f"model.{name}", getattr(self, name), "must be at least 1")
        multiple("model.frames", self.frames, self.tubelet, "model.tubelet")
        multiple("model.size", self.size, self.patch, "model.patch")
        multiple("model.width", self.width, self.heads, "model.heads")
        multiple("model.predictor_width", self.predictor_width, self.predictor_heads, "model.predictor_heads")
        require(self.width // self.heads >= 6, "model.heads", self.heads,
                 f"leaves fewer than 6 channels a head for 3-D positions; at most {max(1, self.width // 6)}")

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        return self.frames // self.tubelet, self.size // self.patch, self.size // self.patch

    @property
    def tokens(self) -> int:
        """Tokens in a clip."""
        t, h, w = self.grid
        return t * h * w


@dataclass(frozen=True, kw_only=True)
class Mask:
    """Two kinds of hidden blocks, drawn for every clip: many small ones (short) and few large ones (long).

    Every clip gets exactly `context` of its tokens to see and `target` of them to predict, whatever was drawn,
    so that shapes are static; which tokens those are is uniform in time and space.
    """

    short_blocks: int = 8
    short_scale: float = 0.15
    """Area of one short block as a fraction of the frame; blocks last the whole clip."""
    long_blocks: int = 2
    long_scale: float = 0.7
    aspect: tuple[float, float] = (0.75, 1.5)
    short_context: float = 0.25
    """Fraction of all tokens that the encoder sees under a short mask."""
    short_target: float = 0.5
    """Fraction of all tokens that are predicted under a short mask."""
    long_context: float = 0.1
    long_target: float = 0.7

    def __post_init__(self) -> None:
        positive("mask", self, "short_blocks", "long_blocks")
        for name in ("short_scale", "long_scale", "short_context", "short_target", "long_context", "long_target"):
            fraction(f"mask.{name}", getattr(self, name))
        span("mask.aspect", self.aspect, 0.1, 10.0)
        for kind in ("short", "long"):
            both = getattr(self, f"{kind}_context") + getattr(self, f"{kind}_target")
            require(both <= 1, f"mask.{kind}_context + mask.{kind}_target", both, "must not exceed 1; nearest: 1.0")


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Which video files, and how a clip is cut from one."""

    path: str = ""
    """A CSV manifest, a V-JEPA list (`path label`), a folder of class folders, or a bare folder of videos.
    Empty: the embedded corpus, rendered on first use."""
    split: str = "train"
    """Rows of this split are used; where the corpus has no splits, all rows."""
    sampling: Literal["stride", "fps", "span"] = "stride"
    """How frames are spaced: every `stride` frames, at `fps`, or evenly over a random `span` of the file."""
    stride: int = 1
    fps: float = 8.0
    span: tuple[float, float] = (0.7, 1.0)
    """With `sampling = "span"`: the window's length as a fraction of the file, drawn between these two."""
    crop_scale: tuple[float, float] = (0.5, 1.0)
    """Area of the random crop as a fraction of the frame."""
    crop_aspect: tuple[float, float] = (0.75, 1.35)
    flip: bool = False
    """Mirror half of the clips. Leave off where left and right matter to the labels."""
    pack: int = 0
    """Side in pixels to which the shorter side of every file is shrunk in a decoded cache; 0: no cache."""
    max_bad: float = 0.5
    """The run stops once more than this fraction of the corpus' files has proved unreadable."""
    threads: int = 2
    """Decoding threads of one process; the order of clips does not depend on it."""
    workers: int = 0
    """Worker processes that decode; 0: threads of the training process alone. Unlike the number of threads, theirs
    belongs to the order of the clips, so a run cannot be resumed with another one."""

    def __post_init__(self) -> None:
        positive("corpus", self, "stride", "fps", "threads")
        span("corpus.span", self.span, 0.01, 1.0)
        span("corpus.crop_scale", self.crop_scale, 0.01, 1.0)
        span("corpus.crop_aspect", self.crop_aspect, 0.1, 10.0)
        require(self.workers >= 0, "corpus.workers", self.workers, "must not be negative; nearest: 0")
        require(self.pack >= 0, "corpus.pack", self.pack, "must be 0 (no cache) or a side in pixels; nearest: 0")
        require(0 <= self.max_bad <= 1, "corpus.max_bad", self.max_bad, "must lie in [0, 1]")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Whose latents are predicted."""

    kind: Literal["ema", "frozen"] = "ema"
    """`ema`: a moving average of the learner (V-JEPA); `frozen`: the encoder as it was at step 0."""
    of: Literal["whole", "change"] = "whole"
    """`whole`: every token's latents, layer-normed (V-JEPA); `change`: what of them departs from their mean over
    time at the same place, so that what stands still is neither rewarded nor learned."""
    error: Literal["absolute", "squared"] = "absolute"
    momentum: tuple[float, float] = (0.99, 1.0)
    """The moving average's momentum at the first and the last step, linear between them."""

    def __post_init__(self) -> None:
        span("target.momentum", self.momentum, 0.0, 1.0)


@dataclass(frozen=True, kw_only=True)
class Learn:
    """Which error moves which weights."""

    rule: Literal[
        "local", "backprop_last", "backprop_all",
        "pc", "pc_ode", "strict", "zil", "epc", "fixed_pred", "accumulate", "mcpc", "exact",
    ] = "local"
    """`local`: each level learns from its own target error and nothing crosses a level. `backprop_last`,
    `backprop_all`: controls, the last level's error, or the sum of all levels' errors, differentiated from end to end.
    The others are predictive coding with inference: states settle under all levels' errors, then each level learns."""


@dataclass(frozen=True, kw_only=True)
class Infer:
    """How states settle before weights learn, under the rules that have inference."""

    engine: Literal["native", "pcx"] = "native"
    """Who computes energies, settling and gradients: Cora, or PCX (`cora/pcx.py`; for rules that PCX has)."""
    steps: int = 4
    rate: float = 0.1

    def __post_init__(self) -> None:
        positive("infer", self, "steps", "rate")


@dataclass(frozen=True, kw_only=True)
class Optim:
    """AdamW with linear warm-up and cosine decay; weight decay spares biases, scales and the mask token."""

    lr: float = 1e-3
    lr_end: float = 1e-5
    warmup: float = 0.1
    """Fraction of the steps in which the learning rate rises from 0."""
    weight_decay: float = 0.05
    b1: float = 0.9
    b2: float = 0.95

    def __post_init__(self) -> None:
        positive("optim", self, "lr")
        require(0 <= self.lr_end <= self.lr, "optim.lr_end", self.lr_end, f"must lie in [0, optim.lr = {self.lr}]")
        require(0 <= self.warmup < 1, "optim.warmup", self.warmup, "must lie in [0, 1)")
        require(self.weight_decay >= 0, "optim.weight_decay", self.weight_decay, "must not be negative; nearest: 0.0")
        for name in ("b1", "b2"):
            require(0 <= getattr(self, name) < 1, f"optim.{name}", getattr(self, name), "must lie in [0, 1)")


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long, how often, from which seed."""

    steps: int = 1000
    batch: int = 32
    seed: int = 0
    log_every: int = 20
    save_every: int = 500
    keep: int = 2
    """Checkpoints kept: the newest so many."""

    def __post_init__(self) -> None:
        positive("run", self, "steps", "batch", "log_every", "save_every", "keep")


@dataclass(frozen=True, kw_only=True)
class Pretrain:
    """One pretraining run, whole."""

    model: Model = field(default_factory=Model)
    mask: Mask = field(default_factory=Mask)
    target: Target = field(default_factory=Target)
    learn: Learn = field(default_factory=Learn)
    infer: Infer = field(default_factory=Infer)
    optim: Optim = field(default_factory=Optim)
    corpus: Corpus = field(default_factory=Corpus)
    run: Run = field(default_factory=Run)
