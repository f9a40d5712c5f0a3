"""The choices and numbers of a run: frozen dataclasses, checked when they are made.

A recipe is a Python file that binds one `Pretrain`; the command line overrides it field by field. This file
knows no array and opens no file; with cora/options.py it holds every default in the project.
"""

from dataclasses import dataclass, field, fields, replace
from typing import Annotated, Any, Literal

from cora.meaning import Count, Entries, Natural, Only, Positive, Range, Rising, Share, Weight
from cora.options import DIRECT as DIRECT
from cora.options import SETTLING, STEPPED
from cora.options import Learn as Learn
from cora.options import Mask as Mask
from cora.options import Optim as Optim
from cora.schema import ConfigError as ConfigError
from cora.schema import check, choice, divisor, guard, multiple, require
from cora.schema import difference as difference
from cora.schema import from_json as from_json
from cora.schema import to_json as to_json
from cora.schema import unsaid as unsaid

Part = Annotated[float, Range(0.01, 1.0)]
"""Of a file or a frame."""
Aspect = Annotated[tuple[Annotated[float, Range(0.1, 10.0)], Annotated[float, Range(0.1, 10.0)]], Rising()]
"""Height over width, drawn between these two."""
HOG3D = Only("kind", "hog3d", "below")
STREAM = "stream"
"""The path of the corpus that is drawn and has no end."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """The encoder (the topology of V-JEPA 2) cut into `levels` of `blocks` transformer blocks each."""

    frames: Count = 16
    size: Count | tuple[Count, Count] = 64
    """Height and width of a clip in pixels; one number for a square."""
    tubelet: Count = 2
    patch: Count = 16
    width: Count = 128
    heads: Count = 4
    levels: Count = 4
    blocks: Count = 1
    """Transformer blocks in each level; the encoder's depth is `levels * blocks`."""
    mlp_ratio: Positive = 4.0
    rope: Literal["tiled", "interleaved"] = "tiled"
    """`tiled` is V-JEPA 2 and Hugging Face; `interleaved` is V-JEPA 2.1, a true rotation."""
    rope_grid: Natural = 0
    """Rows and columns are scaled as if the frame had so many of each, so that any size meets the positions it was
    trained with (V-JEPA 2.1: 16); 0: not scaled."""
    predictor_width: Count = 64
    predictor_depth: Count = 1
    predictor_heads: Count = 2
    predictor_mlp_ratio: Positive = 4.0
    predictor_near: Weight = 0.0
    """Value at which the biases of a predictor's queries and keys begin; above 0, attention begins at what is near."""
    predictor_gaze: Literal["near", "around"] = "near"
    """With `predictor_near`: whether every head begins at what is nearest, or each at another neighbour in turn: one
    step earlier, later, up, down, left, right, its own place at any time, two steps earlier. Give heads 8 channels
    then: wider ones are turned by several angles, and look around less sharply (unless `rope` is interleaved)."""
    predictor_tokens: Weight = 0.0
    """Standard deviation with which mask tokens begin; V-JEPA 2 begins them at 0."""
    mask_tokens: Count = 2
    """Learned mask tokens of a predictor; mask kind i uses token i mod mask_tokens."""
    scaled_init: bool = False
    """Divide the initial weights of what block i adds to the residual stream by sqrt(2 i) (V-JEPA)."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """In which products are computed; parameters, norms and the residual stream stay in float32."""
    attention: Literal["auto", "einsum", "xla", "cudnn"] = "auto"
    """`auto`: the fastest for the device (`vit.attention`)."""
    remat: bool = False
    """Recompute the inside of each block in the backward pass rather than keep it."""

    def __post_init__(self) -> None:
        check("model", self)
        multiple("model.frames", self.frames, self.tubelet, "model.tubelet")
        for side in (self.size,) if isinstance(self.size, int) else self.size:
            multiple("model.size", side, self.patch, "model.patch")
        multiple("model.width", self.width, self.heads, "model.heads")
        multiple("model.predictor_width", self.predictor_width, self.predictor_heads, "model.predictor_heads")
        for name, width, heads in (("heads", self.width, self.heads),
                                   ("predictor_heads", self.predictor_width, self.predictor_heads)):
            require(width // heads >= 6, f"model.{name}", heads,
                    f"leaves fewer than 6 channels a head for 3-D positions; at most {max(1, width // 6)}")
        require(self.predictor_gaze == "near" or self.predictor_near > 0, "model.predictor_gaze", self.predictor_gaze,
                "means nothing where model.predictor_near is 0; nearest: 'near', or model.predictor_near = 3.0")
        require(self.rope_grid != 1, "model.rope_grid", self.rope_grid,
                "must be 0 or at least 2; nearest: 0")

    @property
    def sides(self) -> tuple[int, int]:
        """Height and width of a clip in pixels."""
        return (self.size, self.size) if isinstance(self.size, int) else self.size

    @property
    def grid(self) -> tuple[int, int, int]:
        """Tokens along time, height and width."""
        return self.frames // self.tubelet, self.sides[0] // self.patch, self.sides[1] // self.patch

    @property
    def tokens(self) -> int:
        """Tokens in a clip."""
        t, h, w = self.grid
        return t * h * w


SIZES: dict[str, tuple[int, int, int, float]] = {
    "tiny": (192, 12, 3, 4.0), "small": (384, 12, 6, 4.0), "base": (768, 12, 12, 4.0), "large": (1024, 24, 16, 4.0),
    "huge": (1280, 32, 16, 4.0), "giant": (1408, 40, 22, 48 / 11), "gigantic": (1664, 48, 16, 64 / 13),
}
"""Width, depth, heads and MLP ratio of V-JEPA 2's encoders (giant with the 22 heads of its released weights)."""


@guard
def sized(name: str, *, levels: Count = 4, **changes: Any) -> Model:
    """Returns the encoder of V-JEPA 2 that has this name, 256 pixels a side, in 4 levels unless `changes` say else.

    Its predictors are V-JEPA 2's (384 channels, 12 heads), each with a level's share of its 12 blocks. Raises
    ConfigError for an unknown name, or levels that do not divide the depth.
    """
    choice("size", name, SIZES)
    width, depth, heads, ratio = SIZES[name]
    near = divisor(depth, levels)
    require(near == levels, "model.levels", levels, f"must divide the depth {depth}; nearest: {near}")
    shape: dict[str, Any] = {
        "size": 256, "width": width, "heads": heads, "mlp_ratio": ratio, "levels": levels, "blocks": depth // levels,
        "predictor_width": 384, "predictor_heads": 12, "predictor_depth": max(1, 12 // levels), "scaled_init": True,
    }
    return Model(**shape | changes)


@dataclass(frozen=True, kw_only=True)
class Corpus:
    """Which video files, and how a clip is cut from one."""

    path: str = ""
    """A CSV manifest, a V-JEPA list (`path label`), a folder of class folders, or a bare folder of videos.
    Empty: the embedded corpus, rendered on first use. `stream`: drawn films without end (cora/video/stream.py), each
    made when its turn comes, of the clip's own shape, so that nothing is cut from them."""
    split: str = "train"
    """Rows of this split are used; where the corpus has no splits, all rows."""
    sampling: Literal["stride", "fps", "span"] = "stride"
    """How frames are spaced: every `stride` frames, at `fps`, or evenly over a random `span` of the file; the last two
    by the times at which frames are shown."""
    stride: Annotated[Count, Only("sampling", "stride")] = 1
    fps: Annotated[Positive, Only("sampling", "fps")] = 8.0
    span: Annotated[tuple[Part, Part], Rising(), Only("sampling", "span")] = (0.7, 1.0)
    """With `sampling = "span"`: the window's length as a fraction of the file, drawn between these two."""
    longest: Annotated[Weight, Only("sampling", "span")] = 0.0
    """With `sampling = "span"`: no window is longer than so many seconds, so that films are cut into moments as short
    clips are; 0: any length."""
    crop_scale: Annotated[tuple[Part, Part], Rising()] = (0.5, 1.0)
    """Area of the random crop as a fraction of the frame."""
    crop_aspect: Aspect = (0.75, 1.35)
    flip: bool = False
    """Mirror half of the clips. Leave off where left and right matter to the labels."""
    pack: Natural = 0
    """Side in pixels to which the shorter side of every file is shrunk in a decoded cache; 0: no cache."""
    max_bad: Share = 0.5
    """The run stops once more than this fraction of the corpus' files has proved unreadable."""
    threads: Count = 2
    """Decoding threads of one process; the order of clips does not depend on it."""
    workers: Natural = 0
    """Worker processes that decode; 0: threads of the training process alone. Unlike the number of threads, theirs
    belongs to the order of the clips, so a run cannot be resumed with another one."""
    weight: Positive = 1.0
    """Share of every batch, beside the other corpora of `mix`."""
    frames: Natural = 0
    """Frames of a clip; 0: `model.frames`. Images are clips too: give them `model.tubelet`."""
    size: Natural | tuple[Count, Count] = 0
    """Height and width of a clip; 0: `model.size`."""

    def __post_init__(self) -> None:
        check("corpus", self)
        for one in fields(self) if self.path == STREAM else ():
            value, read = getattr(self, one.name), one.name in ("path", "threads", "weight", "frames", "size")
            require(read or value == one.default, f"corpus.{one.name}", value,
                    f"nothing reads it where corpus.path = {STREAM!r}; nearest: {one.default}")


@dataclass(frozen=True, kw_only=True)
class Target:
    """Whose latents are predicted."""

    kind: Literal["ema", "frozen", "own", "hog3d", "below"] = "ema"
    """`ema`: a moving average of the learner (V-JEPA); `frozen`: the encoder as it was at step 0, or `start`'s (SALT);
    `own`: the learner's own latents of the whole clip, no gradient through them: give `learn.prior` some weight, or
    they collapse; `hog3d`: no latents but oriented energy in space and time (cora/nets/hog3d.py), for every level;
    `below`: each level predicts the latents of the level below, as a moving average of the learner has them, and the
    lowest `hog3d`, so that no level makes its own target and none can collapse by its own doing."""
    order: Annotated[Literal[1, 2], HOG3D] = 1
    """With `hog3d`: 1, which way brightness changes; 2, which way that energy changes: borders of what moves one way,
    onsets, turns."""
    cells: Annotated[tuple[Count, ...], Entries((1,)), HOG3D, Only("order", 1)] = (1, 2)
    """Of order 1: histograms of so many cells along each side of a patch, one after the other."""
    grain: Annotated[Count, HOG3D, Only("order", 2)] = 4
    """Of order 2: the side in pixels of what the maps of oriented energy have one number for."""
    contrast: Annotated[Positive, HOG3D] = 0.42
    """With `hog3d`: gradients far below it (0.42: 24 grey levels) keep how strong they are, those far above do not."""
    blur: Annotated[Weight, HOG3D] = 2.0
    """With `hog3d`: standard deviation in pixels of the Gaussian through which a clip is seen; 0: as it is."""
    start: Annotated[str, Only("kind", "frozen")] = ""
    """Where a frozen teacher comes from: a run folder, exported weights, or a Hugging Face folder."""
    of: Literal["whole", "change", "both"] = "whole"
    """`whole`: every token's latents, layer-normed (V-JEPA), under `hog3d` each channel in the batch; `change`: what of
    them departs from their mean over time at the same place, so that what stands still is neither rewarded nor
    learned; `both` (hog3d alone): the one beside the other, each in half of the channels."""
    error: Literal["absolute", "smooth", "squared"] = "absolute"
    """`smooth`: squared within 1 of the target, absolute beyond (smooth L1)."""
    momentum: Annotated[tuple[Share, Share], Rising(), Only("kind", "ema", "below")] = (0.99, 1.0)
    """The moving average's momentum at the first and the last step, linear between them; under `below` 0 is the learner
    itself."""

    def __post_init__(self) -> None:
        check("target", self)
        require(self.of != "both" or self.kind == "hog3d", "target.of", self.of,
                f"only hog3d has both, and target.kind = {self.kind!r}; nearest: 'change'")


@dataclass(frozen=True, kw_only=True)
class Infer:
    """How states settle before weights learn, under the rules that have inference."""

    engine: Annotated[Literal["native", "pcx"], Only("learn.rule", *SETTLING)] = "native"
    """Who computes energies, settling and gradients: Cora, or PCX (`cora/pcx.py`; for rules that PCX has)."""
    steps: Annotated[Count, Only("learn.rule", *STEPPED)] = 4
    rate: Annotated[Positive, Only("learn.rule", *STEPPED)] = 0.1

    def __post_init__(self) -> None:
        check("infer", self)


@dataclass(frozen=True, kw_only=True)
class Run:
    """How long, how often, from which seed."""

    steps: Count = 1000
    batch: Count = 32
    seed: Natural = 0
    log_every: Count = 20
    save_every: Count = 500
    keep: Count = 2
    """Checkpoints kept: the newest so many."""
    start: str = ""
    """Where weights begin: a run folder, an exported or imported one, or a Hugging Face folder; empty: at random."""

    def __post_init__(self) -> None:
        check("run", self)


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
    mix: tuple[Corpus, ...] = ()
    """Further corpora, with clips of their own shape perhaps, that have their share of every batch. A recipe says how
    many there are; then `--mix.0.path` and so on are options too."""
    run: Run = field(default_factory=Run)

    def __post_init__(self) -> None:
        check("pretrain", self)
        require(self.learn.reach <= self.model.levels, "learn.reach", self.learn.reach,
                f"must be at most model.levels; nearest: {self.model.levels}")
        require(not self.learn.precision or self.target.error == "squared", "target.error", self.target.error,
                "has no precision, and learn.precision = True; nearest: 'squared'")
        self._refuse_unread()
        if self.target.kind not in ("hog3d", "below"):
            return
        of = {"cells": self.target.cells} if self.target.order == 1 else {"grain": (self.target.grain,)}
        for name, values in of.items():
            for value in values:
                near = divisor(self.model.patch, value)
                require(near == value, f"target.{name}", value, f"must divide model.patch = {self.model.patch}; "
                        f"nearest: {near}")
        require(self.learn.rule != "dense", "learn.rule", self.learn.rule,
                f"predicts every level's own latents, and target.kind = {self.target.kind!r} asks for others; nearest: "
                "'local'")

    def _refuse_unread(self) -> None:
        """Refuses what other sections leave unread, where an annotation cannot say so."""
        optim, momentum = self.optim, self.target.momentum
        moving = self.target.kind in ("ema", "below") and momentum[0] != momentum[1]
        require(optim.stretch == 1 or optim.schedule != "constant" or optim.weight_decay_end is not None or moving,
                "optim.stretch", optim.stretch, "nothing changes over this run: optim.schedule is 'constant', and "
                "neither weight decay nor the teacher's momentum moves; nearest: 1.0")
        before, plain = [self._shaped(self.corpus)], Corpus()
        for i, one in enumerate(self.mix):
            alike = self._shaped(one) in before
            for name, idle in (("max_bad", True), ("workers", alike), ("threads", alike and not one.pack)):
                require(not idle or getattr(one, name) == getattr(plain, name), f"mix.{i}.{name}", getattr(one, name),
                        f"corpora share that of the first {'' if name == 'max_bad' else 'with their shape of clips '}"
                        f"alone; nearest: {getattr(plain, name)}")
            before.append(self._shaped(one))

    def _shaped(self, corpus: Corpus) -> Model:
        """The model on the clips of this corpus."""
        return replace(self.model, frames=corpus.frames or self.model.frames, size=corpus.size or self.model.size)

    def parts(self, devices: int = 1) -> tuple["Pretrain", ...]:
        """Returns the run cut by the shape of its clips: one config a shape, with its model, corpora and clips a batch.

        Clips are shared out by weight, the largest remainders first, in units of `devices`, at least one unit a shape.
        Raises ConfigError where the batch is too small for that.
        """
        shapes: dict[Model, list[Corpus]] = {}
        for one in (self.corpus, *self.mix):
            shapes.setdefault(self._shaped(one), []).append(one)
        units, spare = self.run.batch // devices, self.run.batch // devices - len(shapes)
        legal = f"a multiple of the {devices} devices, enough for {len(shapes)} shapes of clips"
        require(self.run.batch % devices == 0 and spare >= 0, "run.batch", self.run.batch,
                f"must be {legal}; nearest: {devices * max(len(shapes), units)}")
        weights = [sum(one.weight for one in corpora) for corpora in shapes.values()]
        exact = [max(0.0, units * w / sum(weights) - 1) for w in weights]
        scaled = [x * spare / (sum(exact) or 1) for x in exact]
        counts = [1 + int(x) for x in scaled]
        for i in sorted(range(len(counts)), key=lambda i: int(scaled[i]) - scaled[i])[: units - sum(counts)]:
            counts[i] += 1
        return tuple(replace(self, model=model, corpus=corpora[0], mix=tuple(corpora[1:]),
                             run=replace(self.run, batch=count * devices))
                     for (model, corpora), count in zip(shapes.items(), counts, strict=True))
