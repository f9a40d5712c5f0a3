"""Video without end: films of textured things that move, turn, deform and hide each other before a moving camera.

Film number i of a seed is a pure function of the two, so nothing is stored, nothing is decoded and a run that goes on
sees what an undisturbed one would have seen. All parameters are drawn from wide priors; none is a label's own, and
what is there is known to the last number (`Facts`). It is drawn by JAX, so it runs on whatever JAX runs on.

Coordinates: the frame's shorter side spans [-1, 1], y runs downwards; time runs from 0 to 1 over a film.
"""

from collections.abc import Callable
from functools import cache, partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int, UInt8

from cora.types import Key

VERSION = 1
"""Raise it whenever the same seed would give other pixels."""
FRAMES, SIDE, FPS = 20, 80, 12.0
"""Of a film, unless another size is asked for."""
THINGS = 5
"""At most in a film; the first is the nearest to the camera."""
MOTIONS = ("still", "drift", "fall", "swing", "orbit", "bounce")
"""How a thing moves, besides turning, growing and deforming; their order is that of the labels."""
LOBES = (0, 2, 3, 4, 5, 7)
"""What a thing is: how many lobes its outline has, 0 a disc."""
WAVES = 6
WALL = 0.8
"""Where things that bounce turn back, along both sides."""


class Texture(NamedTuple):
    """Waves added up, bent by a tanh and laid between two colours."""

    waves: Float[Array, "*n W 2"]
    """Radians per unit along x and y."""
    phases: Float[Array, "*n W"]
    weights: Float[Array, "*n W"]
    colours: Float[Array, "*n 2 3"]
    """In [0, 1]."""


class Thing(NamedTuple):
    """One thing, and all that it does, in the coordinates of the world, which are the frame's where the camera rests.

    Stacked along a leading axis, nearest first.
    """

    texture: Texture
    there: Bool[Array, "*n"]
    kind: Int[Array, "*n"]
    """A place in LOBES."""
    depth: Float[Array, "*n"]
    """Of the lobes, as a share of the radius."""
    radius: Float[Array, "*n"]
    motion: Int[Array, "*n"]
    """A place in MOTIONS."""
    centre: Float[Array, "*n 2"]
    """At half time, but for what swings or runs round: then what it runs about."""
    velocity: Float[Array, "*n 2"]
    rate: Float[Array, "*n"]
    """Radians per film of what swings or runs round; its sign is the sense."""
    phase: Float[Array, "*n"]
    angle: Float[Array, "*n"]
    spin: Float[Array, "*n"]
    growth: Float[Array, "*n"]
    """Of the radius' logarithm over a film."""
    pulse: Float[Array, "*n"]
    """By how much the lobes' depth comes and goes, as a share of it."""


class Camera(NamedTuple):
    """Where the camera looks: it drifts, turns, zooms and shakes."""

    velocity: Float[Array, "*n 2"]
    turn: Float[Array, "*n"]
    zoom: Float[Array, "*n"]
    """Of the scale's logarithm over a film."""
    shake: Float[Array, "*n 2"]
    rate: Float[Array, "*n"]
    light: Float[Array, "*n"]
    """By how much the light changes over a film, as a share."""


class Shot(NamedTuple):
    """What is seen between two cuts."""

    backdrop: Texture
    things: Thing
    camera: Camera


class Scene(NamedTuple):
    """A film before it is drawn: two shots, and the time at which the second follows; above 1 it never does."""

    shots: Shot
    cut: Float[Array, ""]


class Facts(NamedTuple):
    """What is there in every frame, things nearest first; where there is no thing, zeros."""

    there: Bool[Array, "T O"]
    kind: Int[Array, "T O"]
    motion: Int[Array, "T O"]
    position: Float[Array, "T O 2"]
    """Of the centre, x and y in the frame."""
    velocity: Float[Array, "T O 2"]
    """Of the centre in the frame, per film."""
    radius: Float[Array, "T O"]
    angle: Float[Array, "T O"]
    inside: Float[Array, "T O"]
    """Share of the thing that lies within the frame."""
    covered: Float[Array, "T O"]
    """Share of what lies within the frame that nearer things hide."""
    bounced: Bool[Array, "T O"]
    """Whether it turned back since the frame before."""
    cut: Bool[Array, " T"]
    """Whether the frame is the first of a new shot."""


# ------------------------------------------------------------------------------------------------------- priors


def _between(key: Key, low: float, high: float, shape: tuple[int, ...] = ()) -> Array:
    return jax.random.uniform(key, shape, jnp.float32, low, high)


def _texture(key: Key, scale: float) -> Texture:
    """Returns a texture whose coarsest waves are about `scale` units long; finer ones are weaker."""
    k = iter(jax.random.split(key, 6))
    octave = _between(next(k), 0.0, 3.0, (WAVES,))
    angle, length = _between(next(k), 0.0, 2 * jnp.pi, (WAVES,)), 2 * jnp.pi / scale * 2.0**octave
    waves = length[:, None] * jnp.stack([jnp.cos(angle), jnp.sin(angle)], axis=1)
    sharpness = jnp.exp(_between(next(k), -0.7, 1.8))
    weights = sharpness * 2.0 ** (-octave) * jax.random.normal(next(k), (WAVES,))
    return Texture(waves, _between(next(k), 0.0, 2 * jnp.pi, (WAVES,)), weights, _between(next(k), 0.0, 1.0, (2, 3)))


def _thing(key: Key) -> Thing:
    k = iter(jax.random.split(key, 16))
    heading, speed = _between(next(k), 0.0, 2 * jnp.pi), _between(next(k), 0.3, 1.8)
    motion = jax.random.randint(next(k), (), 0, len(MOTIONS))
    sense = jax.random.rademacher(next(k), (), jnp.float32)
    turns = jax.random.bernoulli(next(k), 0.5) * 1.0
    grows = jax.random.bernoulli(next(k), 0.35) * 1.0
    return Thing(
        texture=_texture(next(k), 1.2), there=jnp.array(True), kind=jax.random.randint(next(k), (), 0, len(LOBES)),
        depth=_between(next(k), 0.15, 0.45), radius=jnp.exp(_between(next(k), -2.0, -0.7)),
        motion=motion, centre=_between(next(k), -0.7, 0.7, (2,)),
        velocity=speed * jnp.stack([jnp.cos(heading), jnp.sin(heading)]),
        rate=sense * _between(next(k), 4.0, 11.0), phase=_between(next(k), 0.0, 2 * jnp.pi),
        angle=_between(next(k), 0.0, 2 * jnp.pi), spin=turns * _between(next(k), -8.0, 8.0),
        growth=grows * _between(jax.random.fold_in(key, 1), -1.2, 1.2),
        pulse=jax.random.bernoulli(jax.random.fold_in(key, 2), 0.3) * _between(jax.random.fold_in(key, 3), 0.3, 1.0),
    )


def _camera(key: Key) -> Camera:
    k = iter(jax.random.split(key, 10))
    moves = jax.random.bernoulli(next(k), 0.6) * 1.0
    heading, speed = _between(next(k), 0.0, 2 * jnp.pi), _between(next(k), 0.0, 0.8)
    shakes = jax.random.bernoulli(next(k), 0.25) * 1.0
    return Camera(
        velocity=moves * speed * jnp.stack([jnp.cos(heading), jnp.sin(heading)]),
        turn=moves * _between(next(k), -0.6, 0.6), zoom=moves * _between(next(k), -0.5, 0.5),
        shake=shakes * _between(next(k), -0.06, 0.06, (2,)), rate=_between(next(k), 10.0, 30.0),
        light=jax.random.bernoulli(next(k), 0.3) * _between(next(k), -0.5, 0.5),
    )


def _shot(key: Key) -> Shot:
    backdrop, things, camera, many = jax.random.split(key, 4)
    drawn = jax.vmap(_thing)(jax.random.split(things, THINGS))
    count = jax.random.randint(many, (), 0, THINGS + 1)
    return Shot(_texture(backdrop, 1.6), drawn._replace(there=jnp.arange(THINGS) < count), _camera(camera))


def scene(key: Key) -> Scene:
    """Returns a film's parameters; one in ten has a cut."""
    shots, cuts, when = jax.random.split(key, 3)
    cut = jnp.where(jax.random.bernoulli(cuts, 0.1), _between(when, 0.2, 0.8), 2.0)
    return Scene(jax.vmap(_shot)(jax.random.split(shots)), cut)


# ------------------------------------------------------------------------------------------------------ motions


def _folded(x: Array) -> tuple[Array, Array]:
    """Returns x as it goes to and fro between -WALL and WALL, and how often it has turned back."""
    laps = (x + WALL) / (2 * WALL)
    return WALL * (1 - 4 * jnp.abs((laps / 2) % 1 - 0.5)), jnp.floor(laps)


def _path(thing: Thing, time: Float[Array, " T"]) -> tuple[Float[Array, "T 2"], Float[Array, " T"]]:
    """Returns where a thing's centre is in the world at these times, and how often it has bounced."""
    t = (time - 0.5)[:, None]
    centre, velocity = thing.centre[None], thing.velocity[None]
    straight = centre + velocity * t
    falling = straight + jnp.array([[0.0, 1.0]]) * jnp.abs(thing.rate) * 0.25 * t**2
    turned = thing.rate * time + thing.phase
    reach = 0.25 * jnp.linalg.norm(velocity)
    swinging = centre + 0.35 * velocity * jnp.sin(turned)[:, None]
    circling = centre + reach * jnp.stack([jnp.cos(turned), jnp.sin(turned)], axis=1)
    bouncing, laps = _folded(centre + 1.6 * velocity * t)
    still = jnp.broadcast_to(centre, straight.shape)
    paths = jnp.stack([still, straight, falling, swinging, circling, bouncing])
    bounces = jnp.where(thing.motion == MOTIONS.index("bounce"), jnp.sum(laps, axis=1), 0.0)
    return paths[thing.motion], bounces


class View(NamedTuple):
    """Where the camera looks in every frame: world = origin + scale * turned(frame)."""

    origin: Float[Array, "T 2"]
    scale: Float[Array, " T"]
    angle: Float[Array, " T"]


def _view(camera: Camera, time: Float[Array, " T"]) -> View:
    t = time - 0.5
    shaken = camera.shake[None] * jnp.sin(camera.rate * time[:, None] * jnp.array([[1.0, 1.3]]))
    return View(camera.velocity[None] * t[:, None] + shaken, jnp.exp(camera.zoom * t), camera.turn * t)


def _turn(at: Float[Array, "*n 2"], angle: Array) -> Float[Array, "*n 2"]:
    cos, sin = jnp.cos(angle), jnp.sin(angle)
    return jnp.stack([cos * at[..., 0] - sin * at[..., 1], sin * at[..., 0] + cos * at[..., 1]], axis=-1)


# ------------------------------------------------------------------------------------------------------ drawing


def _painted(texture: Texture, at: Float[Array, "H W 2"]) -> Float[Array, "H W 3"]:
    level = jnp.zeros(at.shape[:2])
    for wave, phase, weight in zip(texture.waves, texture.phases, texture.weights, strict=True):
        level += weight * jnp.sin(at[..., 0] * wave[0] + at[..., 1] * wave[1] + phase)
    share = (0.5 + 0.5 * jnp.tanh(level))[..., None]
    one, other = texture.colours[:, None, None]
    return one + share * (other - one)


class Pose(NamedTuple):
    """A thing in one frame."""

    centre: Float[Array, "*n 2"]
    radius: Float[Array, "*n"]
    angle: Float[Array, "*n"]
    depth: Float[Array, "*n"]


def _pose(thing: Thing, time: Float[Array, " T"]) -> Pose:
    t = time - 0.5
    depth = thing.depth * (1 - thing.pulse * (0.5 + 0.5 * jnp.sin(2 * thing.rate * time)))
    return Pose(_path(thing, time)[0], thing.radius * jnp.exp(thing.growth * t), thing.angle + thing.spin * t, depth)


def _frame(
    shot: Shot, view: View, poses: Pose, time: Float[Array, ""], size: tuple[int, int]
) -> tuple[Float[Array, "H W 3"], Float[Array, " O"], Float[Array, " O"]]:
    """Returns a frame in [0, 1], and of every thing (share within the frame, share of that which is covered)."""
    pixel = 2 / min(size)
    y, x = ((jnp.arange(side) + 0.5 - side / 2) * pixel for side in size)
    frame = jnp.stack(jnp.meshgrid(x, y, indexing="xy"), axis=-1)
    world = view.origin[None, None] + view.scale * _turn(frame, view.angle)
    lobes = jnp.array(LOBES)[shot.things.kind]

    def lay(picture: Array, one: tuple) -> tuple[Array, Array]:
        thing, pose, count = one
        local = _turn(world - pose.centre[None, None], -pose.angle) / pose.radius
        r = jnp.linalg.norm(local + 1e-9, axis=-1)
        wave = jnp.where(count > 0, jnp.cos(count * jnp.arctan2(local[..., 1], local[..., 0] + 1e-9)), 0.0)
        edge = (1 + pose.depth * wave - r) * pose.radius / (view.scale * pixel)
        cover = jnp.where(thing.there, jnp.clip(edge + 0.5, 0, 1), 0.0)
        lit = _painted(thing.texture, local) * (1.1 - 0.35 * jnp.square(jnp.minimum(r, 1.4)))[..., None]
        return picture + cover[..., None] * (lit - picture), cover

    picture, covers = jax.lax.scan(lay, _painted(shot.backdrop, world), (shot.things, poses, lobes), reverse=True)
    clear = jnp.cumprod(jnp.concatenate([jnp.ones((1, *size)), 1 - covers[:-1]]), axis=0)
    own, seen = jnp.sum(covers, axis=(1, 2)), jnp.sum(covers * clear, axis=(1, 2))
    depth = jnp.where(lobes > 0, poses.depth, 0.0)
    whole = jnp.pi * jnp.square(poses.radius / (view.scale * pixel)) * (1 + 0.5 * jnp.square(depth))
    light = 1 + shot.camera.light * (time - 0.5)
    return picture * light, jnp.minimum(own / whole, 1.0), jnp.where(own > 0, 1 - seen / jnp.maximum(own, 1e-6), 0.0)


def film(
    scene: Scene, frames: int = FRAMES, size: tuple[int, int] = (SIDE, SIDE)
) -> tuple[UInt8[Array, "T H W 3"], Facts]:
    """Returns a scene's frames, and what is there in each."""
    time = (jnp.arange(frames) + 0.5) / frames
    later = (time >= scene.cut).astype(jnp.int32)

    def told(shot: Shot, time: Float[Array, " T"]) -> tuple[View, Pose, Array, Array]:
        poses = jax.tree.map(lambda x: jnp.moveaxis(x, 0, 1), jax.vmap(_pose, (0, None))(shot.things, time))
        view = _view(shot.camera, time)
        away = (poses.centre - view.origin[:, None]) / view.scale[:, None, None]
        bounces = jax.vmap(lambda one: _path(one, time)[1])(shot.things)
        return view, poses, _turn(away, -view.angle[:, None]), bounces.T

    def of_frame(both: tuple) -> tuple:
        return jax.tree.map(lambda x: x[later, jnp.arange(frames)], both)

    views, poses, position, bounces = of_frame(jax.vmap(told, (0, None))(scene.shots, time))
    step = 1e-3
    ahead, behind = (of_frame(jax.vmap(told, (0, None))(scene.shots, time + gap))[2] for gap in (step, -step))
    shots = jax.tree.map(lambda x: x[later], scene.shots)
    pictures, inside, covered = jax.vmap(partial(_frame, size=size))(shots, views, poses, time)
    things, first = shots.things, jnp.concatenate([jnp.zeros((1,), bool), later[1:] != later[:-1]])
    turned = jnp.concatenate([jnp.zeros((1, THINGS), bool), bounces[1:] != bounces[:-1]]) & ~first[:, None]
    facts = Facts(things.there, things.kind, things.motion, position, (ahead - behind) / (2 * step),
                  poses.radius / views.scale[:, None], poses.angle - views.angle[:, None], inside, covered, turned,
                  first)
    known = facts._replace(cut=things.there)  # masks every fact of things alike; the cut is the film's own
    masked = jax.tree.map(lambda x: jnp.where(things.there.reshape(*things.there.shape, *(1,) * (x.ndim - 2)), x, 0)
                          .astype(x.dtype), known)
    return jnp.clip(pictures * 255 + 0.5, 0, 255).astype(jnp.uint8), masked._replace(cut=first)


Renderer = Callable[[int, int], tuple[UInt8[np.ndarray, "T H W 3"], Facts]]
"""(seed, number) to a film and its facts."""


@cache
def renderer(frames: int = FRAMES, size: tuple[int, int] = (SIDE, SIDE)) -> Renderer:
    """Returns the compiled function that draws a film of so many frames, (height, width) pixels, in NumPy arrays."""

    @jax.jit
    def draw(seed: Int[Array, ""], number: Int[Array, ""]) -> tuple[UInt8[Array, "T H W 3"], Facts]:
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(VERSION), seed), number)
        return film(scene(key), frames, size)

    return lambda seed, number: jax.tree.map(np.asarray, draw(np.int32(seed), np.int32(number)))


def subject(facts: Facts) -> int:
    """Returns how the nearest thing of the middle frame moves, a place in MOTIONS; -1 where there is none."""
    middle = len(facts.there) // 2
    return int(facts.motion[middle, 0]) if facts.there[middle, 0] else -1
