"""Ordinary networks as hierarchies: perceptrons, convolutional nets and transformers for predictive coding.

Each builder returns the hierarchy and its initialiser. The last layer is the top level's readout, so that any loss can
stand at the output; with `clamped=True` it is a level of its own instead, for a value node that is held at the goal.
"""

from collections.abc import Callable
from typing import Annotated, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from cora.meaning import Count, Entries, Positive
from cora.nets import vit
from cora.pc.energy import Trees
from cora.schema import guard, multiple, require
from cora.types import Context, Hierarchy, Key, Level, State, Theta

Activation = Callable[[Array], Array]
Loss = Callable[[Float[Array, "B D"], Array], Float[Array, " B"]]
Parameterisation = Literal["sp", "ntp", "mupc"]
Initialiser = Literal["lecun", "orthogonal", "xavier", "settled"]
Sizes = Annotated[tuple[Count, ...], Entries((1, 1))]
"""Units of every layer, the input's first and the output's last."""
Kinds = Annotated[tuple[Count, ...], Entries((1,))]


class Chain(NamedTuple):
    """A hierarchy that needs no masks, and how its parameters begin."""

    hierarchy: Hierarchy
    init: Callable[[Key], Trees]


def _alike(name: str, guess: Array, goal: Array, words: str = "") -> None:
    """Raises ValueError where a goal would broadcast."""
    if guess.shape != goal.shape:
        raise ValueError(f"{name}: a goal {list(goal.shape)} for a readout {list(guess.shape)}; expected the same "
                         f"shape{words}")


def squared(guess: Float[Array, "B ..."], goal: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """Returns half the sum of squares of every sample."""
    _alike("squared", guess, goal)
    return jnp.sum(jnp.square(goal - guess).reshape(guess.shape[0], -1), axis=1) / 2


def cross_entropy(logits: Float[Array, "B D"], goal: Float[Array, "B D"]) -> Float[Array, " B"]:
    """Returns -Σ goal log softmax(logits) of every sample; `goal` holds class probabilities."""
    _alike("cross_entropy", logits, goal, " of class probabilities; nearest: jax.nn.one_hot(labels, classes)")
    return -jnp.sum(goal * jax.nn.log_softmax(logits), axis=-1)


def smooth_l1(guess: Float[Array, "B ..."], goal: Float[Array, "B ..."]) -> Float[Array, " B"]:
    """Returns the sum of Huber's loss with threshold 1 of every sample."""
    _alike("smooth_l1", guess, goal)
    far = jnp.abs(goal - guess)
    each = jnp.where(far < 1, jnp.square(far) / 2, far - 0.5)
    return jnp.sum(each.reshape(guess.shape[0], -1), axis=1)


@guard
def factors(sizes: tuple[int, ...], parameterisation: Parameterisation, residual: bool) -> tuple[float, ...]:
    """Returns the forward factor a_l of every layer.

    sp: 1. ntp: 1/sqrt(inputs) (a residual hidden layer: 1/sqrt(inputs L)). mupc: as ntp, but the output 1/inputs.
    Source: μPC (arXiv 2505.13124); the weights of ntp and mupc are drawn with unit variance. JPC multiplies a layer's
    bias by a_l too; here it stands beside, so that what it adds learns 1/a_l² times as fast by SGD, 1/a_l by Adam.
    """
    depth = len(sizes) - 1
    if parameterisation == "sp":
        return (1.0,) * depth
    hidden = [(n * (depth if residual else 1)) ** -0.5 for n in sizes[1:-2]]
    last = sizes[-2] ** (-1.0 if parameterisation == "mupc" else -0.5)
    return (sizes[0] ** -0.5, *hidden, last)


@guard
def draw(key: Key, outputs: Count, inputs: Count, how: Initialiser) -> Float[Array, "o i"]:
    """Returns the initial weights of a layer.

    lecun: variance 1/inputs. orthogonal. xavier: variance 2/(inputs + outputs). settled: variance such that f and its
    transpose both keep the norm of what they carry at settled states, 1/sqrt(inputs outputs), Xavier's condition for
    errors that have spread.
    """
    if how == "orthogonal":
        return jax.nn.initializers.orthogonal()(key, (outputs, inputs))
    variance = {"lecun": 1 / inputs, "xavier": 2 / (inputs + outputs), "settled": (inputs * outputs) ** -0.5}[how]
    return variance**0.5 * jax.random.normal(key, (outputs, inputs))


@guard
def mlp(
    sizes: Sizes, act: Activation = jax.nn.relu, loss: Loss = squared, *,
    parameterisation: Parameterisation = "sp", residual: bool = False, bias: bool = True, first_act: bool = False,
    order: Literal["before", "after"] = "before", init: Initialiser = "lecun", clamped: bool = False,
    decode: bool = False, prior: Literal["none", "zero", "learned"] = "none",
) -> Chain:
    """Returns a perceptron of len(sizes) - 1 layers: a_l W_l act(z_{l-1}) + b_l, plus z_{l-1} where residual.

    `order="after"` is act(a_l W_l z_{l-1} + b_l) with a linear last layer (PCX's tutorials, Torch2PC; the Tutorial's
    last layer has the activation as well) instead of JPC's act-before-weight. Biases are never multiplied by a_l, as
    JPC's are. Equal hidden layers become one Level, repeated. `decode` gives every level a linear top-down prediction
    b_l(z) = V_l act(z) of the level below (bidirectional and hybrid hierarchies).

    An autoencoder is an mlp whose goal is its input. With a `prior` the mlp is generative: sizes[0] units are a latent,
    and one more level, underneath, predicts them from nothing: it reads its input's batch axis alone (any [B, _] does).
    """
    require(len(sizes) > 2 or clamped, "mlp.sizes", sizes,
            f"has no hidden layer, which clamped=True alone can lack; nearest: {(sizes[0], *sizes)}")
    depth, a = len(sizes) - 1, factors(sizes, parameterisation, residual)
    runs = _runs(sizes, depth if clamped else depth - 1)

    def layer(i: int) -> Callable[[Theta, State, Context], State]:
        def f(theta: Theta, x: Float[Array, "B i"], context: Context) -> Float[Array, "B o"]:
            inner = act(x) if order == "before" and (i > 0 or first_act) else x
            # Beware: `inner @ w.T` of a repeated level would lay the weights out anew at every step of inference.
            out = a[i] * jnp.einsum("bi,oi->bo", inner, theta["w"])
            out = out + theta["b"][None] if bias else out
            out = act(out) if order == "after" and i < depth - 1 else out
            return out + x if residual and 0 < i < depth - 1 else out

        return f

    def down(theta: Theta, z: Float[Array, "B o"], context: Context) -> Float[Array, "B i"]:
        return jnp.einsum("bo,io->bi", act(z), theta["v"])

    def begin(key: Key, i: int) -> Theta:
        key, back = jax.random.split(key)
        w = draw(key, sizes[i + 1], sizes[i], init) if parameterisation == "sp" else \
            jax.random.normal(key, (sizes[i + 1], sizes[i]))
        theta = {"w": w} | ({"b": jnp.zeros(sizes[i + 1])} if bias else {})
        return theta | ({"v": draw(back, sizes[i], sizes[i + 1], "lecun")} if decode else {})

    def level(first: int, count: int) -> Level:
        f = layer(first)
        plain = Level(lambda t, x, c: f(t["f"], x, c), repeat=count)
        if decode:
            plain = plain._replace(decode=lambda t, z, c: down(t["f"], z, c))
        if clamped or first + count < depth - 1:
            return plain
        g = layer(depth - 1)
        return plain._replace(readout=lambda t, x, c: g(t["g"], x, c), error=loss)

    def start(key: Key) -> Trees:
        keys = jax.random.split(key, depth)
        params = [{"f": {"mean": jnp.zeros((1, sizes[0]))} if prior == "learned" else {}}] if prior != "none" else []
        for first, count in runs:
            stack = {"f": jax.vmap(lambda k, i=first: begin(k, i))(keys[first : first + count])}
            if not clamped and first + count == depth - 1:
                stack["g"] = jax.tree.map(lambda x: x[None], begin(keys[-1], depth - 1))
            params.append(stack)
        return tuple(params)

    bottom = () if prior == "none" else (Level(lambda t, x, c: _prior(t["f"], x, sizes[0])),)
    return Chain((*bottom, *(level(*run) for run in runs)), start)


def _prior(theta: Theta, x: Float[Array, "B _"], units: int) -> Float[Array, "B u"]:
    """The prior's mean for every sample, zero where it is not learned."""
    return jnp.broadcast_to(theta.get("mean", jnp.zeros(units, x.dtype)), (x.shape[0], units))


@guard
def under(net: Chain, shape: Kinds) -> Chain:
    """Returns the net with one more level underneath, whose value node is the net's input [B, *shape], predicted zero.

    So an input too settles, whole or where it is not held (`Evidence.held`); the lowest of the energy's precisions
    weighs that prior, and 0 makes it flat. Of its own input the new level reads the batch axis alone.
    """

    def bottom(theta: Theta, x: Float[Array, "B _"], context: Context) -> Float[Array, "B ..."]:
        return jnp.zeros((x.shape[0], *shape), x.dtype)

    return Chain((Level(bottom), *net.hierarchy), lambda key: ({}, *net.init(key)))


def _runs(sizes: tuple[int, ...], levels: int) -> list[tuple[int, int]]:
    """Where runs of equal layers begin and how long they are; the first and the last level stand alone."""
    runs: list[tuple[int, int]] = []
    for i in range(levels):
        alike = 1 < i < levels - 1 and sizes[i : i + 2] == sizes[i - 1 : i + 1]
        if alike:
            runs[-1] = (runs[-1][0], runs[-1][1] + 1)
        else:
            runs.append((i, 1))
    return runs


@guard
def cnn(
    image: tuple[Count, Count, Count], channels: Kinds, outputs: Count, act: Activation = jax.nn.relu,
    loss: Loss = squared, *, kernel: Count = 3, stride: Count = 2, init: Initialiser = "lecun",
) -> Chain:
    """Returns a convolutional net on images [B, height, width, channels]: levels act(W * z + b), then a linear readout.

    Each level divides the picture's sides by `stride` (zero padding, rounded up); the readout sees all of the last
    level's units.
    """
    widths, sides = (image[2], *channels), (image[0], image[1])
    for _ in channels:
        sides = (-(-sides[0] // stride), -(-sides[1] // stride))
    flat = sides[0] * sides[1] * channels[-1]

    def convolve(theta: Theta, x: Float[Array, "B h w i"], context: Context) -> Float[Array, "B a b o"]:
        f = theta["f"]
        axes = ("NHWC", "HWIO", "NHWC")
        out = jax.lax.conv_general_dilated(x, f["w"], (stride, stride), "SAME", dimension_numbers=axes)
        return act(out + f["b"][None, None, None])

    def readout(theta: Theta, x: Float[Array, "B a b o"], context: Context) -> Float[Array, "B y"]:
        return x.reshape(x.shape[0], -1) @ theta["g"]["w"].T + theta["g"]["b"][None]

    def start(key: Key) -> Trees:
        keys = jax.random.split(key, len(channels) + 1)
        params = []
        for k, inputs, own in zip(keys, widths, channels, strict=False):
            w = draw(k, own, kernel * kernel * inputs, init)
            params.append({"f": {"w": w.T.reshape(1, kernel, kernel, inputs, own), "b": jnp.zeros((1, own))}})
        params[-1]["g"] = {"w": draw(keys[-1], outputs, flat, init)[None], "b": jnp.zeros((1, outputs))}
        return tuple(params)

    top = Level(convolve, readout, loss)
    return Chain((Level(convolve),) * (len(channels) - 1) + (top,), start)


@guard
def transformer(
    tokens: Count, inputs: Count, width: Count, heads: Count, blocks: Count, outputs: Count, loss: Loss = squared, *,
    mlp_ratio: Positive = 4.0, scaling: Literal["sp", "depth"] = "sp",
) -> Chain:
    """Returns a pre-norm transformer on sequences [B, tokens, inputs]: an embedding, one level a block, a readout.

    The embedding is linear with a learned position; a block is x + s attention(norm x), then that + s mlp(norm of it);
    the readout is linear in the mean over tokens of the normed top. `depth` scales every branch by s = 1/blocks and
    attention's logits by 1/d_head in place of 1/sqrt(d_head) (CompleteP, arXiv 2505.01618; JPC's transformer).
    """
    multiple("transformer.width", width, heads, "heads")
    branch = 1 / blocks if scaling == "depth" else 1.0
    sharp = (width // heads) ** -0.5 if scaling == "depth" else 1.0
    hidden = int(width * mlp_ratio)

    def linear(tree: Theta, x: Float[Array, "B K i"]) -> Float[Array, "B K o"]:
        return x @ tree["w"].T + tree["b"][None, None]

    def norm(tree: Theta, x: Float[Array, "B K D"]) -> Float[Array, "B K D"]:
        return jax.nn.standardize(x, epsilon=vit.EPS) * tree["scale"][None, None] + tree["shift"][None, None]

    def embed(theta: Theta, x: Float[Array, "B K i"], context: Context) -> Float[Array, "B K D"]:
        return linear(theta["f"]["in"], x) + theta["f"]["place"][None]

    def block(theta: Theta, x: Float[Array, "B K D"], context: Context) -> Float[Array, "B K D"]:
        f = theta["f"]
        qkv = linear(f["qkv"], norm(f["norm1"], x)).reshape(x.shape[0], x.shape[1], 3, heads, width // heads)
        mixed = vit.attend(qkv[:, :, 0] * sharp, qkv[:, :, 1], qkv[:, :, 2]).reshape(x.shape)
        x = x + branch * linear(f["proj"], mixed)
        return x + branch * linear(f["fc2"], vit.gelu(linear(f["fc1"], norm(f["norm2"], x))))

    def readout(theta: Theta, x: Float[Array, "B K D"], context: Context) -> Float[Array, "B y"]:
        g = theta["g"]
        return jnp.mean(norm(g["norm"], x), axis=1) @ g["out"]["w"].T + g["out"]["b"][None]

    def begin(key: Key, rows: int, columns: int) -> Theta:
        return {"w": draw(key, rows, columns, "lecun"), "b": jnp.zeros(rows)}

    def begin_norm() -> Theta:
        return {"scale": jnp.ones(width), "shift": jnp.zeros(width)}

    def begin_block(key: Key) -> Theta:
        keys = jax.random.split(key, 4)
        return {"norm1": begin_norm(), "qkv": begin(keys[0], 3 * width, width), "proj": begin(keys[1], width, width),
                "norm2": begin_norm(), "fc1": begin(keys[2], hidden, width), "fc2": begin(keys[3], width, hidden)}

    def start(key: Key) -> Trees:
        first, place, middle, last = jax.random.split(key, 4)
        every = jax.vmap(begin_block)(jax.random.split(middle, blocks))
        out = {"norm": begin_norm(), "out": begin(last, outputs, width)}
        bottom = {"in": begin(first, width, inputs), "place": 0.02 * jax.random.normal(place, (tokens, width))}
        inner = ({"f": jax.tree.map(lambda x: x[:-1], every)},) if blocks > 1 else ()
        top = {"f": jax.tree.map(lambda x: x[-1:], every), "g": jax.tree.map(lambda x: x[None], out)}
        return ({"f": jax.tree.map(lambda x: x[None], bottom)}, *inner, top)

    body = (Level(block, repeat=blocks - 1),) if blocks > 1 else ()
    return Chain((Level(embed), *body, Level(block, readout, loss)), start)
