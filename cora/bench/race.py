"""Benchmarks: the same work by Cora and by its peers, alternating in one process, compilation apart."""

import statistics
import time
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from functools import partial
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import Any

import numpy as np
from rich.table import Table

from cora.bench import with_jax
from cora.bench.problem import Contender, Material, Problem, material

PEERS = ("pcx", "fabricpc", "loop")
NAMES: dict[str, tuple[Problem, ...]] = {
    "pc": tuple(
        Problem(sizes, "tanh", steps)
        for sizes in ((784, 300, 300, 300, 10), (784, *(128,) * 20, 10)) for steps in (8, 20)
    ),
}
"""Benchmark -> what is computed in it."""
AGREE = 1e-3
"""Largest relative distance between two programs' first weight gradients."""


def known(name: str, names: Sequence[str], what: str) -> str:
    """Returns the name if it is one of these; raises ValueError naming the nearest otherwise."""
    if name not in names:
        near = get_close_matches(name, names, 1, 0.0)[0]
        raise ValueError(f"{what} = {name!r}: there is none such; nearest: {near!r}; all: {', '.join(names)}")
    return name


def present(peer: str) -> bool:
    """Whether this peer can be run here."""
    return peer == "loop" or find_spec(peer) is not None


def programs(peer: str) -> tuple[Callable[[Problem, Material], Contender], ...]:
    """Returns the forms in which this peer's users write the step; the faster one counts."""
    if peer == "cora":
        return (with_jax.cora,)
    if peer == "loop":
        return partial(with_jax.loop, unroll=True), partial(with_jax.loop, unroll=False)
    build = import_module(f"cora.bench.with_{peer}").build
    return (partial(build, scanned=False), partial(build, scanned=True)) if peer == "pcx" else (build,)


def prepare(problem: Problem, start: Material, peer: str) -> tuple[list[Contender], dict[str, Any]]:
    """Returns this peer's compiled programs, how long compiling took, and the gradient of the first step."""
    ready, seconds, gradients = [], [], []
    for build in programs(peer):
        before = time.perf_counter()
        ready.append(build(problem, start))
        ready[-1].step()
        seconds.append(time.perf_counter() - before)
        gradients.append(np.concatenate([g.ravel() for g in ready[-1].gradient()]))
        ready[-1].step()
    return ready, {"compile_seconds": min(seconds), "gradients": gradients}


def race(problem: Problem, peers: Sequence[str], rounds: int, seconds: float) -> dict[str, Any]:
    """Returns, by program, the seconds of a step, its ratio to Cora in every round, and how far its gradient is off.

    Raises ValueError where a peer does not compute what Cora computes.
    """
    start, forms, found = material(problem), {}, {}
    for name in ("cora", *peers):
        forms[name], found[name] = prepare(problem, start, name)
    ours = found["cora"]["gradients"][0]
    for name, row in found.items():
        row["difference"] = max(float(np.linalg.norm(g - ours) / np.linalg.norm(ours)) for g in row.pop("gradients"))
        if row["difference"] > AGREE:
            raise ValueError(f"{problem.name}: {name}'s gradient is {row['difference']:.1e} off Cora's")
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(rounds):
        for name, contenders in forms.items():
            times[name].append(min(clock(contender, seconds) for contender in contenders))
    for name, row in found.items():
        row["seconds"] = statistics.median(times[name])
        row["ratios"] = [peer / own for peer, own in zip(times[name], times["cora"], strict=True)]
    return {"problem": problem.name, "programs": found}


def clock(contender: Contender, seconds: float) -> float:
    """Returns the median duration of a step, over at least three and about this long."""
    took: list[float] = []
    while len(took) < 3 or sum(took) < seconds:
        before = time.perf_counter()
        contender.step()
        took.append(time.perf_counter() - before)
    return statistics.median(took)


def bench(
    name: str, peers: Sequence[str], *, rounds: int = 7, seconds: float = 0.2,
    problems: Sequence[Problem] | None = None,
) -> dict[str, Any]:
    """Returns the ratios of the peers' times to Cora's: the geometric mean over all problems, and who was absent.

    `spread` holds the smallest and the largest ratio of any round of any problem; `cases` every problem by itself.
    """
    for peer in peers:
        known(peer, PEERS, "peers")
    here = [peer for peer in peers if present(peer)]
    cases = [race(problem, here, rounds, seconds) for problem in problems or NAMES[known(name, list(NAMES), "bench")]]
    ratios = {peer: [case["programs"][peer]["ratios"] for case in cases] for peer in here}
    return {
        "ratios": {peer: statistics.geometric_mean(map(statistics.median, each)) for peer, each in ratios.items()},
        "spread": {peer: [min(map(min, each)), max(map(max, each))] for peer, each in ratios.items()},
        "absent": [peer for peer in peers if peer not in here],
        "cases": cases,
        "versions": {name: installed(name) for name in ("jax", "pcx", "fabricpc")},
    }


def installed(name: str) -> str | None:
    """Returns the version of a distribution, None where it is absent."""
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def as_table(result: dict[str, Any]) -> Table:
    """Returns a row for every problem and program."""
    table = Table(box=None, padding=(0, 2, 0, 0))
    for head in ("network", "program", "ms a step", "times Cora's", "spread", "compiled in s"):
        table.add_column(head, no_wrap=True, justify="left" if head in ("network", "program") else "right")
    for case in result["cases"]:
        for name, row in case["programs"].items():
            ratios = row["ratios"]
            table.add_row(case["problem"] if name == "cora" else "", name, f"{1e3 * row['seconds']:.2f}",
                          f"{statistics.median(ratios):.2f}", f"{min(ratios):.2f}-{max(ratios):.2f}",
                          f"{row['compile_seconds']:.1f}")
    return table
