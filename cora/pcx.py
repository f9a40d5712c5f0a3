"""Cora's hierarchies as PCX networks: one Vode an array of a level's state, settled and learned by PCX's own machinery.

    import pcx.predictive_coding as pxc, pcx.utils as pxu
    video = cora.load("demo/encoder")
    model = cora.pcx.encoder(video.network, video.encoder, ruleset={"forward": ("h -> u",)})
    with pxu.step(model, pxc.STATUS.INIT, clear_params=pxc.VodeParam.Cache):  # or "forward", or a status of your own
        latents = model(video.network.patches(clips))       # [L, B, N, D]; model.levels[l].vodes[0] holds z_l
        energy = model.energy()

Beware: arrays keep their batch axis, and energies are sums over it; inside a `pxf.vmap` over samples, give x[None].
PCX is optional: `pip install --no-deps pcx==0.6.3 && pip install equinox`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import jax
import jax.numpy as jnp
import optax
import pcx
import pcx.functional as pxf
import pcx.nn as pxnn
import pcx.predictive_coding as pxc
import pcx.utils as pxu
from jaxtyping import Array, Float, Int

from cora.pc import energy as F
from cora.pc.energy import Energy, Trees
from cora.pc.infer import Errors, Inference, Settled, Trace
from cora.pc.learn import Gradient, Rule, nudged, precision_at
from cora.types import Activities, Context, Encoder, Evidence, Key, Level, Network, State, Theta

LEGAL = {"variable": "state", "linearise": "current", "keep": "last", "stop": 0.0, "shortcut": (0, 0.0),
         "forward_only": False, "when": "settled", "amplify": 1.0}
"""What PCX has: plain descent on the states of Vodes, then one gradient in the weights."""


class Weight(pcx.Param):
    """π, λ or β of one level: a parameter that no mask for Vodes or layers selects."""


class WeighedVode(pxc.Vode):
    """A Vode whose energy is multiplied by `weight`; its cached "E" is not."""

    def __init__(self, weight: Float[Array, ""], energy_fn: Callable = pxc.se_energy, **settings: Any) -> None:
        super().__init__(energy_fn, **settings)
        self.weight = Weight(weight)

    def energy(self, rkg: Any = pcx.RKG) -> Float[Array, "..."]:
        """Returns w E, summed over the batch (by sample where the network was vmapped)."""
        plain = super().energy(rkg)
        return self.weight.get().astype(plain.dtype) * plain


class Readout(pxc.EnergyModule):
    """λ ρ(g, t): frozen Vodes that hold the goal t as h and what is read out as u, under any error of both."""

    def __init__(self, error: Callable, goal: State, weight: Float[Array, ""]) -> None:
        super().__init__()
        leaves, tree = jax.tree.flatten(goal)
        self.error, self.tree, self.weight = pcx.static(error), pcx.static(tree), Weight(weight)
        self.vodes = [frozen(pxc.Vode(None, {pxc.STATUS.INIT: ("u <- u",)}), leaf) for leaf in leaves]

    def __call__(self, guess: State) -> None:
        """Takes in what the level reads out."""
        for vode, leaf in zip(self.vodes, jax.tree.leaves(guess), strict=True):
            vode(leaf)

    def energy(self) -> Float[Array, ""]:
        """Returns λ ρ, summed over the batch."""
        return self._cost([vode.get("u") for vode in self.vodes])

    def slope(self) -> State:
        """Returns λ dρ/dg."""
        return self.tree.unflatten(jax.grad(self._cost)([vode.get("u") for vode in self.vodes]))

    def _cost(self, guesses: list[Array]) -> Float[Array, ""]:
        goals = [vode.get("h") for vode in self.vodes]
        rows = self.error(*(self.tree.unflatten(x) for x in (guesses, goals)))
        return self.weight.get().astype(rows.dtype) * jnp.sum(rows)


class VodeLevel(pxc.EnergyModule):
    """One level: its parameters, one Vode an array of its state, and what it reads out and decodes, if it does."""

    def __init__(self, level: Level, theta: Theta, tree: Any, precision: Float[Array, ""], **vode: Any) -> None:
        super().__init__()
        self.level, self.tree = pcx.static(level), pcx.static(tree)
        self.theta = jax.tree.map(lambda leaf: pxnn.LayerParam(jnp.asarray(leaf)), theta)
        self.vodes = [WeighedVode(precision, **vode) for _ in range(tree.num_leaves)]
        self.readout: Readout | None = None
        self.decoded: list[WeighedVode] = []

    def __call__(self, below: State, context: Context = None) -> State:
        """Returns what the Vodes put out, z_l where no ruleset says otherwise, when f_l(z_{l-1}) comes in."""
        theta = unwrap(self.theta)
        u = jax.tree.leaves(self.level.encode(theta, below, context))
        z = self.tree.unflatten([vode(leaf) for vode, leaf in zip(self.vodes, u, strict=True)])
        if self.readout is not None:
            self.readout(self.level.readout(theta, z, context))
        if self.decoded:
            guess = jax.tree.leaves(self.level.decode(theta, z, context))
            for vode, b, low in zip(self.decoded, guess, jax.tree.leaves(below), strict=True):
                vode(b, z=low)
        return z

    def state(self, name: str = "h") -> State:
        """Returns the Vodes' values of this name as the level's own kind of tree: "h" is z_l, "u" is f_l."""
        return self.tree.unflatten([vode.get(name) for vode in self.vodes])


class VodeNetwork(pxc.EnergyModule):
    """A hierarchy: its levels from the input upwards, repeated ones one by one."""

    def __init__(self, levels: list[VodeLevel]) -> None:
        super().__init__()
        self.levels = levels

    def __call__(self, x: State, context: Context = None) -> Any:
        """Returns what the highest level puts out."""
        for level in self.levels:
            x = level(x, context)
        return x


class VodeEncoder(VodeNetwork):
    """A video encoder: patch embedding and levels, each with one Vode."""

    def __init__(self, network: Network, weights: Encoder, **vode: Any) -> None:
        one, tree = jnp.ones(()), jax.tree.structure(0)
        levels = jax.tree.leaves(weights.levels)[0].shape[0]
        super().__init__([VodeLevel(Level(network.encode), at(weights.levels, i), tree, one, **vode)
                          for i in range(levels)])
        self.embed, self.norm = pcx.static(network.embed), pcx.static(network.norm)
        self.first = jax.tree.map(lambda leaf: pxnn.LayerParam(jnp.asarray(leaf)), weights.embed)

    def __call__(self, x: Float[Array, "B K P"], context: Int[Array, "B K"] | None = None) -> Float[Array, "L B K D"]:
        """Returns the normed latents of every level for these patches; `context` holds their ids, by default all."""
        ids = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2]) if context is None else context
        z, latents = self.embed(unwrap(self.first), x), []
        for level in self.levels:
            z = level(z, ids)
            latents.append(self.norm(unwrap(level.theta), z))
        return jnp.stack(latents)


def encoder(network: Network, weights: Encoder, **vode: Any) -> VodeEncoder:
    """Returns a pretrained encoder as a PCX module; `vode` (energy_fn, ruleset, tforms, ...) is given to every Vode."""
    return VodeEncoder(network, weights, **vode)


def network(energy: Energy, params: Trees, evidence: Evidence, **vode: Any) -> VodeNetwork:
    """Returns the hierarchy with its Vodes at the forward pass, its goals and a clamped top frozen in their places.

    Called on (evidence.input, evidence.context) and asked for its energy() it gives F of the batch; `vode` as above.
    """
    trees = map(jax.tree.structure, jax.eval_shape(lambda: F.forward(energy, params, evidence)))
    weights = zip(*(F.split(energy, w) for w in (energy.precision, energy.target, energy.reverse)), strict=True)
    if evidence.held:
        raise ValueError("evidence.held: PCX freezes whole Vodes, not parts of them; nearest: (), or cora.learn")
    goals, levels = evidence.goals or (None,) * len(params), []
    low = len(jax.tree.leaves(evidence.input))
    for level, stack, tree, goal, (pi, lam, beta) in zip(energy.hierarchy, params, trees, goals, weights, strict=True):
        for i in range(level.repeat):
            own = VodeLevel(level, at(stack, i), tree, pi[i], **vode)
            if level.error is not None and goal is not None:
                own.readout = Readout(level.error, at(goal, i), lam[i])
            if level.decode is not None:
                own.decoded = [frozen(WeighedVode(beta[i], ruleset={pxc.STATUS.ALL: ("h <- z",)})) for _ in range(low)]
            levels.append(own)
            low = len(own.vodes)
    model = VodeNetwork(levels)
    with pxu.step(model, (pxc.STATUS.INIT, pxc.STATUS.NONE), clear_params=pxc.VodeParam.Cache):
        model(evidence.input, evidence.context)
    if evidence.top is not None:
        for own, leaf in zip(levels[-1].vodes, jax.tree.leaves(evidence.top), strict=True):
            frozen(own, leaf)
    return model


def learn(
    energy: Energy, params: Trees, evidence: Evidence, rule: Rule, key: Key | None = None
) -> tuple[Gradient, Settled, Trace]:
    """Returns what `cora.pc.learn.learn` returns, computed by PCX: Vodes, masks, their optimiser, value_and_grad.

    Beware: rounding is not cancelled as the native engine does; Adam on states makes much of it. Raises ValueError for
    rules that PCX does not have.
    """
    inference, learning = supported(rule)
    if inference.noise and key is None:
        raise ValueError(f"noise = {inference.noise}: a rule with noise needs a key")
    evidence = nudged(energy, params, evidence, learning.nudge)
    with own_keys():
        model = network(energy, params, evidence)
        trace = settle(energy, model, evidence, inference, key)
        schedule(model, precision_at(inference, jnp.asarray(inference.steps)))
        slope = differ(evidence, pxu.M(pxnn.LayerParam) | free(), (0,))
        (_, (rows,)), ((d_input,), d_model) = slope(evidence.input, model=model)
    found = Gradient(stacked(energy, d_model["model"], lambda level: unwrap(level.theta)), d_input)
    z = stacked(energy, model, VodeLevel.state)
    errors = F.add(z, stacked(energy, model, lambda level: level.state("u")), -1.0)
    slopes = stacked(energy, model, lambda level: None if level.readout is None else level.readout.slope())
    last = rows[None], optax.tree.norm(free()(d_model["model"]))[None]
    trace = Trace(*map(jnp.concatenate, zip((trace.energy, trace.residual), last, strict=True)))
    times = 1.0 / learning.nudge / jax.tree.leaves(z)[0].shape[1]
    return jax.tree.map(lambda g: times * g, found), Settled(z, z, Errors(errors, slopes)), trace


def settle(energy: Energy, model: VodeNetwork, evidence: Evidence, rule: Inference, key: Key | None) -> Trace:
    """Moves the free Vodes of `model` by `rule.steps` steps of the rule's optimiser, in one scan; returns the trace."""
    slope = differ(evidence, free())
    optimiser = pxu.Optim(lambda: rule.optimiser, free()(model))

    def body(step: Int[Array, ""], *, model: VodeNetwork, optimiser: pxu.Optim) -> tuple[tuple, tuple[Array, Array]]:
        schedule(model, None if rule.precision is None else rule.precision(step))
        with pxu.step(model, clear_params=pxc.VodeParam.Cache):
            (_, (rows,)), d_model = slope(evidence.input, model=model)
            optimiser.step(model, d_model["model"])
        if rule.noise and key is not None:
            z = stacked(energy, model, VodeLevel.state)
            shake(energy, model, optax.tree.random_like(jax.random.fold_in(key, step), z), rule.noise)
        return (), (rows, optax.tree.norm(d_model["model"]))

    return Trace(*pxf.scan(body, xs=jnp.arange(rule.steps))(model=model, optimiser=optimiser)[1])


def differ(evidence: Evidence, mask: pxu.M, argnums: tuple[int, ...] = ()) -> Callable:
    """Returns PCX's value_and_grad of (input, model=model) -> F and its share in every level, in the masked Params."""

    def total(x: State, *, model: VodeNetwork) -> tuple[Float[Array, ""], Float[Array, " L"]]:
        model(x, evidence.context)
        rows = jnp.stack([level.energy() for level in model.levels])
        return jnp.sum(rows), rows

    return pxf.value_and_grad({"model": mask.to((False, True))}, argnums=argnums, has_aux=True)(total)


def free() -> pxu.M:
    """Returns the mask of all value nodes that nothing clamps; a new one each time, because `.to` changes a mask."""
    return pxu.M_hasnot(pxc.VodeParam, frozen=True)


def frozen(vode: pxc.Vode, value: Array | None = None) -> pxc.Vode:
    """Returns the Vode, clamped at this value."""
    vode.h.set(value)
    vode.h.frozen = True
    return vode


def schedule(model: VodeNetwork, precision: Array | None) -> None:
    """Gives every level its π, where there are new ones."""
    new = () if precision is None else jnp.broadcast_to(precision, (len(model.levels),))
    for level, weight in zip(model.levels, new, strict=False):
        for vode in level.vodes:
            vode.weight.set(weight.astype(vode.weight.dtype))


def shake(energy: Energy, model: VodeNetwork, noise: Activities, size: float) -> None:
    """Adds size times the noise to all free value nodes."""
    levels = iter(model.levels)
    for level, part in zip(energy.hierarchy, noise, strict=True):
        for i in range(level.repeat):
            for vode, leaf in zip(next(levels).vodes, jax.tree.leaves(part), strict=True):
                if not getattr(vode.h, "frozen", False):
                    vode.h.set(vode.h.get() + size * leaf[i])


def stacked(energy: Energy, model: VodeNetwork, of: Callable[[VodeLevel], Any]) -> tuple[Any, ...]:
    """Returns what `of` gives for every level, stacked again as the hierarchy repeats its levels."""
    levels = iter(model.levels)
    return tuple(jax.tree.map(lambda *x: jnp.stack(x), *(of(next(levels)) for _ in range(level.repeat)))
                 for level in energy.hierarchy)


def supported(rule: Rule) -> Rule:
    """Returns the rule; raises ValueError naming the first field that PCX has no counterpart for."""
    given = {**vars(rule[0]), **vars(rule[1])}
    for name, legal in LEGAL.items():
        if given[name] != legal:
            raise ValueError(f"{name} = {given[name]!r}: PCX has no such rule; nearest: {legal!r}")
    return rule


def at(stack: Any, i: int) -> Any:
    """Returns the i-th entry of every leaf."""
    return jax.tree.map(lambda leaf: leaf[i], stack)


def unwrap(tree: Any) -> Any:
    """Returns the arrays that a tree of Params holds."""
    return jax.tree.map(pcx.get, tree, is_leaf=lambda x: isinstance(x, pcx.BaseParam))


@contextmanager
def own_keys() -> Iterator[None]:
    """Lends PCX another random key: its transformations write traced values into the one global key it has."""
    kept, pcx.RKG.key = pcx.RKG.key, pcx.RandomKeyGenerator(0).key
    try:
        yield
    finally:
        pcx.RKG.key = kept
