"""What a linear classifier reads of the embedded corpus' motions from pixels alone, without any network.

    python data/baselines.py        one line a reading: accuracy on the test split

Pictures are grey, averaged over blocks of 4 x 4 pixels; then 150 principal components of the training clips and a
logistic regression with C = 0.003 on them, each of unit variance.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from cora.measure.baselines import GREY
from cora.video import codec, manifest, synthetic

BLOCK, COMPONENTS, C, SEED = 4, 150, 0.003, 0
Films = Float[np.ndarray, "n T h w"]


def films(paths: list[Any]) -> Films:
    """Returns all frames of each file in [0, 1], grey, a number a block."""
    found = []
    for path in paths:
        grey = codec.read(path, np.arange(codec.inspect(path).frames)) / np.float32(255) @ GREY
        high, wide = (side // BLOCK for side in grey.shape[1:])
        found.append(grey.reshape(-1, high, BLOCK, wide, BLOCK).mean((2, 4)))
    return np.stack(found)


def spread(video: Films, count: int) -> Films:
    """Returns frames that lie evenly over each film, in their order."""
    return video[:, ((np.arange(count) + 0.5) * video.shape[1] / count).astype(int)]


def mixed(video: Films) -> Films:
    """Returns the frames of each film in an order of its own, by chance."""
    orders = np.random.default_rng(SEED).permuted(np.tile(np.arange(video.shape[1]), (len(video), 1)), axis=1)
    return np.take_along_axis(video, orders[:, :, None, None], axis=1)


READINGS: dict[str, Callable[[Films], Float[np.ndarray, "n *F"]]] = {
    "middle frame": lambda video: video[:, video.shape[1] // 2],
    "3 frames averaged": lambda video: spread(video, 3).mean(1),
    "8 frames, order destroyed": lambda video: mixed(spread(video, 8)),
    "8 frames in order": lambda video: spread(video, 8),
    "mean absolute difference of frames": lambda video: np.abs(np.diff(video, axis=1)).mean(1),
}


def main() -> None:
    """Prints the accuracy of every reading."""
    whole = manifest.load(synthetic.corpus())
    clips = {split: manifest.select(whole, split) for split in ("train", "test")}
    seen = {split: films(rows.paths) for split, rows in clips.items()}
    labels = {split: [clip.label for clip in rows.clips] for split, rows in clips.items()}
    for name, reading in READINGS.items():
        numbers = {split: reading(video).reshape(len(video), -1) for split, video in seen.items()}
        model = make_pipeline(PCA(COMPONENTS, random_state=SEED), StandardScaler(),
                              LogisticRegression(C=C, max_iter=2000))
        accuracy = model.fit(numbers["train"], labels["train"]).score(numbers["test"], labels["test"])
        print(f"{name:36}{accuracy:.3f}")


if __name__ == "__main__":
    main()
