"""Cora, and the loop that one writes by hand."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from cora.bench.problem import Contender, Material, Problem, adam
from cora.nets.chain import mlp
from cora.pc.energy import Energy
from cora.pc.learn import Learner, step
from cora.pc.presets import preset
from cora.types import Evidence


def cora(problem: Problem, start: Material) -> Contender:
    """Returns Cora's program."""
    hierarchy = mlp(problem.sizes, getattr(jax.nn, problem.act), order="after").hierarchy
    energy, tx = Energy(hierarchy), adam()
    rule = preset("pc", hierarchy, problem.steps, problem.rate)
    params, first = [], 0
    for level in hierarchy:
        w, b = zip(*start.weights[first : first + level.repeat], strict=True)
        params.append({"f": {"w": jnp.stack(w), "b": jnp.stack(b)}})
        first += level.repeat
    params[-1]["g"] = dict(zip("wb", (jnp.asarray(x)[None] for x in start.weights[-1]), strict=True))
    evidence = Evidence(jnp.asarray(start.x), (*(None,) * (len(hierarchy) - 1), jnp.asarray(start.y)[None]))
    run = jax.jit(lambda learner, evidence: step(energy, learner, evidence, rule, tx)[0])
    learner = Learner(tuple(params), tx.init(tuple(params)))

    def once() -> None:
        nonlocal learner
        learner = jax.block_until_ready(run(learner, evidence))

    def gradient() -> list[np.ndarray]:
        found = optax.tree.get(learner.optimiser, "mu")
        stacks = [part["f"]["w"] for part in found] + [found[-1]["g"]["w"]]
        return [np.asarray(w) / 0.1 for stack in stacks for w in stack]

    return Contender(once, gradient)


def loop(problem: Problem, start: Material, unroll: bool = True) -> Contender:
    """Returns the program of a person who knows JAX and this one network: a list of layers and a loop over K."""
    act, tx = getattr(jax.nn, problem.act), adam()

    def predict(weights: list, states: list) -> list[jax.Array]:
        acts = [act] * (len(weights) - 1) + [lambda u: u]
        return [f(z @ w.T + b[None]) for f, (w, b), z in zip(acts, weights, states, strict=True)]

    def energy(weights: list, hidden: list, x: jax.Array, y: jax.Array) -> jax.Array:
        guesses = predict(weights, [x, *hidden])
        return sum((jnp.sum((z - u) ** 2) / 2 for z, u in zip([*hidden, y], guesses, strict=True)), jnp.zeros(()))

    @jax.jit
    def run(weights: list, moments: optax.OptState, x: jax.Array, y: jax.Array) -> tuple[list, optax.OptState]:
        hidden: list[jax.Array] = []
        for w, b in weights[:-1]:
            hidden.append(act((hidden[-1] if hidden else x) @ w.T + b[None]))

        def settle(_: object, hidden: list) -> list:
            slope = jax.grad(energy, argnums=1)(weights, hidden, x, y)
            return [z - problem.rate * g for z, g in zip(hidden, slope, strict=True)]

        hidden = jax.lax.fori_loop(0, problem.steps, settle, hidden, unroll=unroll)
        slope = jax.grad(energy)(weights, hidden, x, y)
        slope = jax.tree.map(lambda g: g / x.shape[0], slope)
        update, moments = tx.update(slope, moments, weights)
        return optax.apply_updates(weights, update), moments

    weights = jax.tree.map(jnp.asarray, [tuple(pair) for pair in start.weights])
    moments = tx.init(weights)
    x, y = jnp.asarray(start.x), jnp.asarray(start.y)

    def once() -> None:
        nonlocal weights, moments
        weights, moments = jax.block_until_ready(run(weights, moments, x, y))

    return Contender(once, lambda: [np.asarray(w) / 0.1 for w, _ in optax.tree.get(moments, "mu")])
