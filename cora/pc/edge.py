"""What is said where users hand over weights and evidence, before anything is compiled: does it fit the hierarchy?

Shapes alone are looked at, by `jax.eval_shape`, so that the check runs under `jit` too and costs nothing once compiled.
Whatever would broadcast, or be heard by nothing, is refused by level, with the shape found and the shape expected.
"""

import re
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from cora.pc.energy import Energy, Trees
from cora.types import Evidence, Level, State

BREAKS = (TypeError, ValueError, KeyError, IndexError)
"""What a level's function raises for arrays that it cannot take."""


def fit(energy: Energy, params: Trees, evidence: Evidence, *, asked: bool = True, learns: bool = False) -> None:
    """Raises ValueError, by level, unless these weights and this evidence fit the hierarchy.

    `asked`: every level that reads out needs a goal. `learns`: something must be known besides the input.
    """
    measured(energy)
    if not isinstance(evidence, Evidence):
        raise ValueError(f"evidence: of type {type(evidence).__name__}; expected Evidence; nearest: "
                         "Evidence(input, goals)")
    batch, x = _input(evidence)
    weights = _weights(energy, params)
    goals = _entries(energy, "evidence.goals", evidence.goals) if _some(evidence.goals) else (None,) * len(weights)
    for i, level in enumerate(energy.hierarchy):
        own, where = weights[i], called(energy, i)
        below, x = x, _trial(f"{where}: encode", level.encode, own, x, context=evidence.context)
        _batched(f"{where}: encode returns", x, batch)
        if level.repeat > 1 and _shapes(x) != _shapes(below):
            raise ValueError(f"{where}: encode returns {told(x)} of {told(below)}; expected the same shape, as a Level "
                             "that is repeated takes what it returns; nearest: a Level of its own")
        if level.decode is not None:
            guess = _trial(f"{where}: decode", level.decode, own, x, context=evidence.context)
            if _shapes(guess) != _shapes(below):
                raise ValueError(f"{where}: decode returns {told(guess)}; expected {told(below)}, what the level reads")
        if goals[i] is not None and level.readout is None:
            top = "; to clamp its value node give Evidence(top=...)" if i == len(weights) - 1 else ""
            raise ValueError(f"evidence.goals: {where} has goal {told(goals[i])}, but reads nothing out: nothing hears "
                             f"it; nearest: None{top}")
        if level.readout is None:
            continue
        guess = _trial(f"{where}: readout", level.readout, own, x, context=evidence.context)
        _batched(f"{where}: readout returns", guess, batch)
        if goals[i] is not None:
            _goal(level, where, guess, goals[i], batch)
        elif asked:
            raise ValueError(f"evidence.goals: {where} has none, but reads out {told(guess)}; nearest: a goal "
                             f"{told(_stacked(guess, level.repeat))}")
    if evidence.top is not None and _shapes(evidence.top) != _shapes(x):
        raise ValueError(f"evidence.top: {told(evidence.top)}; expected the highest value node's {told(x)}")
    known = any(goal is not None for goal in goals) or evidence.top is not None or _some(evidence.held)
    if learns and not known and all(level.decode is None for level in energy.hierarchy):
        raise ValueError("evidence: nothing is known but the input, so that nothing can be learned; nearest: "
                         f"Evidence(input, top=...) with a top {told(x)}")


def measured(energy: Any) -> None:
    """Raises ValueError unless this is an energy."""
    if not isinstance(energy, Energy):
        raise ValueError(f"energy: of type {type(energy).__name__}; expected Energy; nearest: Energy(hierarchy)")


def same(name: str, tree: Any, made: Any, nearest: str) -> None:
    """Raises ValueError unless a tree has the structure and shapes of another."""
    if not _alike(tree, made) or _shapes(tree) != _shapes(made):
        raise ValueError(f"{name}: {_brief(tree)}; expected {_brief(made)}; nearest: {nearest}")


def nudges(energy: Energy, readouts: tuple[State, ...], goals: tuple[State, ...], beta: float) -> None:
    """Raises ValueError unless a goal moved to t + (1 - β) dρ/dg has β times the slope, as where dρ/dg is a function of
    g less t (squared errors, cross-entropy)."""
    for i, (level, guess, goal) in enumerate(zip(energy.hierarchy, readouts, goals, strict=True)):
        if level.error is None or goal is None:
            continue
        if not _alike(guess, goal) or _shapes(guess) != _shapes(goal):
            raise ValueError(f"learning.nudge = {beta}: {called(energy, i)} has a goal {told(goal)} for a readout "
                             f"{told(guess)}, and only a goal of its readout's shape can be moved; nearest: 1.0")
        if not _scales(level.error, guess, beta):
            raise ValueError(f"learning.nudge = {beta}: {called(energy, i)} has an error whose slope a moved goal does "
                             "not scale, as it does that of squared errors and of cross-entropy; nearest: 1.0")


def _scales(error: Callable, guess: State, beta: float) -> bool:
    """Whether a goal so moved scales the slope: tried with a few numbers, two samples of a level."""
    rng = np.random.default_rng(0)
    with jax.ensure_compile_time_eval():
        g = jax.tree.map(lambda x: jnp.asarray(3 * rng.normal(size=(2, *x.shape[2:])), x.dtype), guess)
        t = jax.tree.map(lambda x: jax.nn.softmax(jnp.asarray(rng.normal(size=x.shape), x.dtype)), g)
        slope = jax.grad(lambda g, t: jnp.sum(error(g, t)))
        own = slope(g, t)
        moved = slope(g, jax.tree.map(lambda t, s: t + (1 - beta) * s, t, own))
        gaps = jax.tree.map(lambda m, s: jnp.max(jnp.abs(m - beta * s)), moved, own)
        return all(float(gap) < 1e-3 for gap in jax.tree.leaves(gaps))


def called(energy: Energy, index: int) -> str:
    """Returns what a Level is called: "level 1", or of a repeated one "levels 2 to 4"."""
    first = 1 + sum(level.repeat for level in energy.hierarchy[:index])
    count = energy.hierarchy[index].repeat
    return f"level {first}" if count == 1 else f"levels {first} to {first + count - 1}"


def told(tree: Any) -> str:
    """Returns dtype and shape of an array, or of every array of a tree by its name, for a message."""
    found = [(jax.tree_util.keystr(path), f"{_dtype(leaf)}{list(jnp.shape(leaf))}")
             for path, leaf in jax.tree_util.tree_leaves_with_path(tree)]
    if len(found) == 1 and not found[0][0]:
        return found[0][1]
    return "{" + ", ".join(f"{path.replace(chr(39), '').strip('[]').replace('][', '.')}: {words}"
                           for path, words in found) + "}"


def _brief(tree: Any) -> str:
    """The named tuples of a tree, and its arrays' shapes."""
    names = re.findall(r"namedtuple\[(\w+)\]", str(jax.tree.structure(tree)))
    return f"{', '.join(names) or 'nothing with a name'} with arrays {_shapes(tree)}"


def _dtype(leaf: Any) -> str:
    return str(getattr(leaf, "dtype", None) or np.result_type(leaf))


def _alike(a: Any, b: Any) -> bool:
    """Whether two trees are built alike."""
    one: Any = jax.tree.structure(a)
    return bool(one == jax.tree.structure(b))


def _shapes(tree: Any) -> list[list[int]]:
    return [list(jnp.shape(leaf)) for leaf in jax.tree.leaves(tree)]


def _some(parts: Any) -> bool:
    """Whether there is anything: an array counts as something, an empty tuple does not."""
    return not isinstance(parts, (tuple, list)) or len(parts) > 0


def _stacked(tree: State, repeat: int) -> State:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct((repeat, *x.shape), x.dtype), tree)


def _input(evidence: Evidence) -> tuple[int, State]:
    """The number of samples, and the input's shapes."""
    x = evidence.input
    if not jax.tree.leaves(x):
        raise ValueError(f"evidence.input: {x!r}; expected an array [B, ...], or a tree of them")
    for leaf in jax.tree.leaves(x):
        if not (hasattr(leaf, "dtype") and jnp.issubdtype(leaf.dtype, jnp.floating)):
            kind = _dtype(leaf) if hasattr(leaf, "dtype") else type(leaf).__name__
            raise ValueError(f"evidence.input: {kind}{list(np.shape(leaf))}; expected floating-point numbers, as all "
                             "value nodes are; nearest: input.astype('float32')")
        if not leaf.ndim:
            raise ValueError(f"evidence.input: {told(x)}; expected a leading axis of the batch; nearest: input[None]")
    sizes = {leaf.shape[0] for leaf in jax.tree.leaves(x)}
    if len(sizes) > 1 or not min(sizes):
        raise ValueError(f"evidence.input: {told(x)}; expected a leading axis of the batch, one size for all and at "
                         "least 1")
    return sizes.pop(), jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), x)


def _entries(energy: Energy, name: str, parts: Any) -> tuple[Any, ...]:
    """The parts, one a Level."""
    count = len(energy.hierarchy)
    if not isinstance(parts, (tuple, list)):
        alone = [i for i, level in enumerate(energy.hierarchy) if level.readout is not None] or [count - 1]
        near = ", ".join("goal[None]" if i == alone[-1] else "None" for i in range(count)) + "," * (count == 1)
        raise ValueError(f"{name}: {told(parts)}; expected a tuple with an entry for each of this hierarchy's {count} "
                         f"Levels{f'; nearest: ({near})' if name.endswith('goals') else ''}")
    if len(parts) != count:
        repeats = [level.repeat for level in energy.hierarchy]
        once = f" (repeated {repeats} times: `stack` takes one a level)" if max(repeats) > 1 else ""
        raise ValueError(f"{name}: {len(parts)} entries; expected one for each of this hierarchy's {count} "
                         f"Levels{once}{', None where there is nothing' * name.startswith('evidence')}")
    return tuple(parts)


def _weights(energy: Energy, params: Any) -> tuple[Any, ...]:
    """One level's weights of every Level, as shapes."""
    found = []
    for i, (level, own) in enumerate(zip(energy.hierarchy, _entries(energy, "params", params), strict=True)):
        for leaf in jax.tree.leaves(own):
            if jnp.shape(leaf)[:1] != (level.repeat,):
                raise ValueError(f"params: {called(energy, i)} has {told(own)}; expected a leading axis of "
                                 f"{level.repeat} in every array, a row a level; nearest: `stack` of a tree a level")
        found.append(jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), own))
    return tuple(found)


def _trial(where: str, function: Callable, own: Any, x: State, **given: Any) -> State:
    """What a level's function returns of these shapes."""
    try:
        return jax.eval_shape(lambda own, x: function(own, x, *given.values()), own, x)
    except BREAKS as error:
        raise ValueError(f"{where} cannot take {told(x)} with weights {told(own)}: {_line(error)}") from error


def _line(error: Exception) -> str:
    """The first line of what a function said."""
    line = next(iter(str(error).splitlines()), "")
    return line if type(error) is ValueError else f"{type(error).__name__}: {line}"


def _batched(where: str, x: State, batch: int) -> None:
    if not jax.tree.leaves(x) or any(leaf.shape[:1] != (batch,) for leaf in jax.tree.leaves(x)):
        raise ValueError(f"{where} {told(x)}; expected a leading axis of the batch's {batch} samples")


def _goal(level: Level, where: str, guess: State, goal: State, batch: int) -> None:
    """Requires a goal with an axis of levels and one of samples, that its loss does not broadcast."""
    wanted = _stacked(guess, level.repeat)
    words = f"evidence.goals: {where} has goal {told(goal)}"
    if any(jnp.shape(leaf)[:2] != (level.repeat, batch) for leaf in jax.tree.leaves(goal)):
        plain = _shapes(goal) == _shapes(guess) and level.repeat == 1
        near = "goal[None]" if plain else f"{told(wanted)}, as its readout"
        raise ValueError(f"{words}; expected leading axes of {level.repeat} level{'s' * (level.repeat > 1)} and "
                         f"{batch} samples; nearest: {near}")
    if _alike(goal, guess):
        for leaf, like in zip(jax.tree.leaves(goal), jax.tree.leaves(wanted), strict=True):
            if jnp.issubdtype(leaf.dtype, jnp.floating) and leaf.shape != like.shape and _broadcasts(leaf, like):
                raise ValueError(f"{words}, which would broadcast; expected its readout's {told(wanted)}; nearest: a "
                                 "goal of that shape, or one in a tuple for a loss that means another")
    level_goal = jax.tree.map(lambda x: jax.ShapeDtypeStruct(jnp.shape(x)[1:], jnp.result_type(x)), goal)
    assert level.error is not None  # Energy sees to it
    try:
        row = jax.eval_shape(level.error, guess, level_goal)
    except BREAKS as error:
        raise ValueError(f"{words} for a readout {told(wanted)}: {_line(error)}") from error
    if getattr(row, "shape", None) != (batch,):
        raise ValueError(f"{where}: error returns {told(row)}; expected one number a sample, [{batch}]")


def _broadcasts(a: Any, b: Any) -> bool:
    """Whether two shapes broadcast, levels aside."""
    return all(1 in (m, n) or m == n for m, n in zip(a.shape[:0:-1], b.shape[:0:-1], strict=False))
