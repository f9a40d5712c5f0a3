"""FabricPC: Linear nodes in a graph, InferenceSGD, and the training step that its documentation gives for own loops."""

from itertools import pairwise

import jax
import jax.numpy as jnp
import numpy as np
import optax
from fabricpc.core.activations import IdentityActivation, ReLUActivation, TanhActivation
from fabricpc.core.inference import InferenceSGD
from fabricpc.core.topology import Edge
from fabricpc.core.types import GraphParams, NodeParams
from fabricpc.graph_assembly import TaskMap, graph
from fabricpc.nodes import Linear
from fabricpc.training import make_train_step

from cora.bench.problem import Contender, Material, Problem, adam

ACTIVATIONS = {"relu": ReLUActivation, "tanh": TanhActivation}


def build(problem: Problem, start: Material) -> Contender:
    """Returns FabricPC's program."""
    act, last = ACTIVATIONS[problem.act], len(problem.sizes) - 1
    nodes = [Linear(shape=(size,), name=f"z{i}", activation=act() if 0 < i < last else IdentityActivation())
             for i, size in enumerate(problem.sizes)]
    edges = [Edge(source=low, target=high.slot("in")) for low, high in pairwise(nodes)]
    structure = graph(nodes=nodes, edges=edges, task_map=TaskMap(x=nodes[0], y=nodes[-1]),
                      inference=InferenceSGD(eta_infer=problem.rate, infer_steps=problem.steps))
    weights = {"z0": NodeParams(weights={}, biases={})} | {
        f"z{i + 1}": NodeParams({f"z{i}->z{i + 1}:in": jnp.asarray(w.T)}, {"b": jnp.asarray(b)[None]})
        for i, (w, b) in enumerate(start.weights)
    }
    params, tx, key = GraphParams(nodes=weights), adam(), jax.random.key(0)
    moments = tx.init(params)
    batch = {"x": jnp.asarray(start.x), "y": jnp.asarray(start.y)}
    run = make_train_step(structure, tx)

    def once() -> None:
        nonlocal params, moments
        params, moments, *_ = jax.block_until_ready(run(params, moments, batch, key))

    def gradient() -> list[np.ndarray]:
        nodes = optax.tree.get(moments, "mu").nodes
        return [np.asarray(next(iter(nodes[f"z{i + 1}"].weights.values()))).T / 0.1 for i in range(last)]

    return Contender(once, gradient)
