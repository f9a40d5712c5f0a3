"""PCX, as its notebooks 0 (two moons) and 7 (MCPC) write a training step: K unrolled in Python, or in its scan."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pcx as px
import pcx.functional as pxf
import pcx.nn as pxnn
import pcx.predictive_coding as pxc
import pcx.utils as pxu

from cora.bench.problem import Contender, Material, Problem, adam

BATCHED = pxu.M(pxc.VodeParam | pxc.VodeParam.Cache).to((None, 0))
FREE = pxu.M_hasnot(pxc.VodeParam, frozen=True)


class Model(pxc.EnergyModule):
    """The perceptron of notebook 0, with a squared error at its output."""

    def __init__(self, problem: Problem, start: Material) -> None:
        super().__init__()
        self.act = px.static(getattr(jax.nn, problem.act))
        self.layers = [pxnn.Linear(i, o) for i, o in zip(problem.sizes[:-1], problem.sizes[1:], strict=True)]
        for layer, (w, b) in zip(self.layers, start.weights, strict=True):
            layer.nn.weight.set(jnp.asarray(w))
            layer.nn.bias.set(jnp.asarray(b))
        self.vodes = [pxc.Vode() for _ in self.layers]
        self.vodes[-1].h.frozen = True

    def __call__(self, x: jax.Array, y: jax.Array | None) -> jax.Array:
        for vode, layer in zip(self.vodes[:-1], self.layers[:-1], strict=True):
            x = vode(self.act(layer(x)))
        self.vodes[-1](self.layers[-1](x))
        if y is not None:
            self.vodes[-1].set("h", y)
        return self.vodes[-1].get("u")


@pxf.vmap(BATCHED, in_axes=(0, 0), out_axes=0)
def forward(x: jax.Array, y: jax.Array, *, model: Model) -> jax.Array:
    """Returns the outputs; the vodes keep what reached them."""
    return model(x, y)


@pxf.vmap(BATCHED, in_axes=(0,), out_axes=(None, 0), axis_name="batch")
def energy(x: jax.Array, *, model: Model) -> tuple[jax.Array, jax.Array]:
    """Returns the energy of the batch, and the outputs."""
    out = model(x, None)
    return jax.lax.psum(model.energy(), "batch"), out


def state_step(step: object, x: jax.Array, *, model: Model, optim_h: pxu.Optim) -> tuple[jax.Array, None]:
    """Moves the states once, in place; returns what PCX's scan wants."""
    with pxu.step(model, clear_params=pxc.VodeParam.Cache):
        _, g = pxf.value_and_grad(FREE.to([False, True]), has_aux=True)(energy)(x, model=model)
    optim_h.step(model, g["model"])
    return x, None


def train_on_batch(
    steps: int, scanned: bool, x: jax.Array, y: jax.Array, *, model: Model, optim_w: pxu.Optim, optim_h: pxu.Optim,
) -> None:
    """Makes one training step, in place."""
    model.train()
    with pxu.step(model, (pxc.STATUS.INIT, None), clear_params=pxc.VodeParam.Cache):
        forward(x, y, model=model)
    optim_h.init(FREE.to(None)(model))
    if scanned:
        pxf.scan(state_step, xs=jnp.arange(steps))(x, model=model, optim_h=optim_h)
    else:
        for step in range(steps):
            state_step(step, x, model=model, optim_h=optim_h)
    optim_h.clear()
    with pxu.step(model, clear_params=pxc.VodeParam.Cache):
        _, g = pxf.value_and_grad(pxu.M(pxnn.LayerParam).to([False, True]), has_aux=True)(energy)(x, model=model)
    optim_w.step(model, g["model"], scale_by=1.0 / x.shape[0])


def build(problem: Problem, start: Material, scanned: bool = False) -> Contender:
    """Returns PCX's program."""
    model = Model(problem, start)
    x, y = jnp.asarray(start.x), jnp.asarray(start.y)
    with pxu.step(model, pxc.STATUS.INIT, clear_params=pxc.VodeParam.Cache):
        forward(x, y, model=model)  # as notebook 0 advises, or the second step compiles anew
    optim_w = pxu.Optim(adam, pxu.M(pxnn.LayerParam)(model))
    optim_h = pxu.Optim(lambda: optax.sgd(problem.rate))
    run = pxf.jit(static_argnums=(0, 1))(train_on_batch)

    def once() -> None:
        run(problem.steps, scanned, x, y, model=model, optim_w=optim_w, optim_h=optim_h)
        jax.block_until_ready([layer.nn.weight.get() for layer in model.layers])

    def gradient() -> list[np.ndarray]:
        return [np.asarray(g) / 0.1 for g in jax.tree.leaves(optax.tree.get(optim_w.state.get(), "mu")) if g.ndim == 2]

    return Contender(once, gradient)
