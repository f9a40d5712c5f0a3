"""Laws of the priors and of the two objectives in which levels meet: predictors told from above, and V-JEPA 2.1's."""

from dataclasses import replace
from functools import cache

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import compiled, drawn
from scipy import integrate
from test_rules import largest_gap

from cora import config
from cora.nets.hierarchy import build
from cora.pc import dense, regularise, rules, settled, topdown
from cora.pc.learn import learn
from cora.pc.presets import preset
from cora.types import Masks, Sight

MODEL = config.Model(frames=4, size=32, patch=8, width=24, heads=2, levels=2, predictor_width=12, predictor_heads=1)
LEARN = {
    "plain": config.Learn(), "down": config.Learn(top_down=True), "prior": config.Learn(prior=0.05, slices=8),
    "seen": config.Learn(seen=0.7), "both": config.Learn(seen=0.7, top_down=True),
    "dense": config.Learn(rule="dense", context_ramp=(0.25, 0.75)),
}


@cache
def made(learn):
    """A network under this objective with no weight near zero or one, a teacher, and what it is shown."""
    network, rng = build(MODEL, None, learn), np.random.default_rng(0)
    params, teacher = drawn(network, 0), drawn(network, 1)
    clips = jax.random.randint(jax.random.key(2), (2, 4, 32, 32, 3), 0, 256).astype(jnp.uint8)
    order = [np.stack([rng.permutation(32) for _ in range(2)]) for _ in range(2)]
    masks = tuple(Masks(jnp.array(np.sort(o[:, :8])), jnp.array(np.sort(o[:, 16:]))) for o in order)
    return network, params, teacher.encoder, Sight(network.patches(clips), masks, jax.random.key(3), jnp.array(0.5))


@cache
def rule(learn):
    return compiled(settled.rule_of(learn, config.Infer(), MODEL, config.Target()), static_argnums=0)


def run(learn, *case):
    return rule(learn)(*case)


# ----------------------------------------------------------------------------------------------------------- priors


def test_the_statistic_is_the_integral_of_its_definition():
    """The trapezoid rule on 17 points against adaptive quadrature of the formula, for a sample far from normal."""
    u = np.random.default_rng(0).exponential(size=(40, 3))

    def slow(x):
        inside = lambda t: (abs(np.exp(1j * t * x).mean() - np.exp(-t * t / 2)) ** 2) * np.exp(-t * t / 2)  # noqa: E731
        return len(x) * integrate.quad(inside, -3, 3)[0]

    np.testing.assert_allclose(regularise.epps_pulley(jnp.array(u, jnp.float32)), [slow(x) for x in u.T], rtol=2e-3)


def test_sigreg_is_small_for_normal_samples_of_any_size_and_grows_with_collapsed_ones():
    draw = compiled(lambda z: regularise.sigreg(jax.random.key(1), z, 64))
    normal = [float(draw(jax.random.normal(jax.random.key(2), (n, d)))) for n, d in ((128, 4), (1024, 4), (128, 32))]
    collapsed = [float(draw(jnp.ones((n, 4)) * 0.3)) for n in (128, 1024)]
    assert max(normal) < 2 < collapsed[0] / 10
    np.testing.assert_allclose(collapsed[1] / collapsed[0], 8, rtol=1e-4)


def test_vicreg_is_its_formula():
    """Against NumPy's covariance, channel by channel and pair by pair, where some channels vary too little."""
    z = np.random.default_rng(0).normal(size=(50, 6)) @ np.diag([0.1, 0.5, 0.9, 1.0, 2.0, 3.0])
    z[:, 5] += z[:, 4]
    cov = np.cov(z, rowvar=False)
    narrow = sum(max(0, 1 - np.sqrt(cov[j, j] + 1e-4)) for j in range(6)) / 6
    repeated = sum(cov[i, j] ** 2 for i in range(6) for j in range(6) if i != j) / 6
    assert narrow > 0.2 and repeated > 1  # both terms have a say
    np.testing.assert_allclose(regularise.vicreg(jnp.array(z, jnp.float32)), narrow + repeated / 25, rtol=1e-5)


def test_vicreg_rests_where_channels_vary_and_do_not_repeat_each_other():
    """Zero, and no slope, for uncorrelated channels of any deviation above 1; a collapsed level costs .99 (its ε)."""
    z = np.random.default_rng(0).normal(size=(40, 6))
    z = np.linalg.qr(z - z.mean(0))[0] * np.sqrt(39) * np.linspace(1.1, 3, 6)
    value, slope = jax.value_and_grad(regularise.vicreg)(jnp.array(z, jnp.float32))
    np.testing.assert_allclose(value, 0, atol=1e-9)
    np.testing.assert_allclose(slope, 0, atol=1e-7)
    np.testing.assert_allclose(regularise.vicreg(jnp.full((40, 6), 0.3)), 0.99, rtol=1e-5)


@pytest.mark.parametrize("of", ["tokens", "clips"])
def test_a_prior_weighs_the_mean_over_masks_of_the_kind_that_was_named(of):
    learn, key = config.Learn(prior=0.3, prior_of=of), jax.random.key(0)
    z = [jax.random.normal(jax.random.key(i), (5, 3 + i, 4)) for i in range(2)]
    flat = [x.reshape(-1, 4) if of == "tokens" else x.mean(1) for x in z]
    for kind, measure in (("sigreg", lambda x: regularise.sigreg(key, x, 8)), ("vicreg", regularise.vicreg)):
        slices = 8 if kind == "sigreg" else learn.slices  # which nothing reads
        found = regularise.prior(replace(learn, prior_kind=kind, slices=slices))(key, z)
        np.testing.assert_allclose(found, 0.3 * sum(map(measure, flat)) / 2, rtol=1e-6)


@pytest.mark.parametrize("kind", ["sigreg", "vicreg"])
@pytest.mark.parametrize("of", ["tokens", "clips"])
def test_a_prior_stays_within_its_level(of, kind):
    """Moving an upper level's weights leaves lower gradients bit-identical; without weight nothing changes."""
    slices = 8 if kind == "sigreg" else config.Learn().slices
    learn = replace(LEARN["prior"], prior_of=of, prior_kind=kind, slices=slices)
    case = made(learn)
    gradient, error = run(learn, *case)
    without, same = run(LEARN["plain"], *made(LEARN["plain"]))
    assert largest_gap(gradient, without) > 1e-3
    np.testing.assert_allclose(error, same, rtol=1e-6)  # errors are reported without the prior's energy
    network, params, teacher, sight = case
    moved = jax.tree.map(lambda x: x.at[-1].add(0.5), params.encoder.levels)
    moved = params._replace(encoder=params.encoder._replace(levels=moved))
    again, _ = run(learn, network, moved, teacher, sight)
    for a, b in zip(jax.tree.leaves(gradient.encoder.levels), jax.tree.leaves(again.encoder.levels), strict=True):
        np.testing.assert_array_equal(a[:-1], b[:-1])


# ------------------------------------------------------------------------------------------------------ seen tokens


def test_the_error_on_seen_tokens_is_read_linearly_and_weighed():
    """Against the formula, level by level."""
    network, params, teacher, sight = case = made(LEARN["seen"])
    gradient, error = run(LEARN["seen"], *case)
    _, hidden = run(LEARN["plain"], build(MODEL), *case[1:])
    at = lambda tree, i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731

    def beside(own, tree, z, full):
        line = tree["beside"]["linear"]
        gaps = [rules.gather(full, m.context) - (network.norm(own, x) @ line["kernel"] + line["bias"][None, None])
                for x, m in zip(z, sight.masks, strict=True)]
        return sum(jnp.mean(jnp.abs(gap)) for gap in gaps) / 2

    def plain(params):
        z, full = rules.start(network, params.encoder.embed, sight), network.embed(teacher.embed, sight.patches)
        ids, errors = jnp.broadcast_to(jnp.arange(32), (2, 32)), []
        for i in range(MODEL.levels):
            own, tree, above = at(params.encoder.levels, i), at(params.predictors, i), at(teacher.levels, i)
            z = [network.encode(own, x, m.context) for x, m in zip(z, sight.masks, strict=True)]
            full = network.encode(above, full, ids)
            errors.append(beside(own, tree, z, network.goal(network.norm(above, full))))
        return sum(errors), jnp.stack(errors)

    slope, errors = compiled(jax.grad(plain, has_aux=True))(params)
    np.testing.assert_allclose(error, hidden + 0.7 * errors, rtol=1e-5)
    mine, theirs = (g.predictors["beside"]["linear"]["kernel"] for g in (gradient, slope))
    np.testing.assert_allclose(mine, 0.7 * theirs, atol=1e-6)


def test_the_scanned_rule_is_the_preset_local_on_seen_tokens_too():
    network, params, teacher, sight = case = made(LEARN["seen"])
    gradient, _ = run(LEARN["seen"], *case)

    def general(params):
        energy, trees, evidence, _ = settled.problem(network, params, teacher, sight)
        found = learn(energy, trees, evidence, preset("local", energy.hierarchy))[0].params[0]
        return jax.tree.map(lambda g: g / energy.target, found)

    assert largest_gap(compiled(general)(params), (gradient.encoder.levels, gradient.predictors)) < 1e-4


def test_deaf_predictors_beside_a_map_of_seen_tokens_learn_as_without_a_level_above():
    network, params, teacher, sight = made(LEARN["both"])
    deaf = {**params.predictors, "above": jax.tree.map(jnp.zeros_like, params.predictors["above"])}
    params = params._replace(predictors=deaf)
    told, heard = compiled(topdown.local, static_argnums=0)(network, params, teacher, sight)
    plain, error = compiled(rules.local, static_argnums=0)(network, params, teacher, sight)
    np.testing.assert_allclose(heard, error, rtol=1e-5)
    assert largest_gap(told.encoder, plain.encoder) < 1e-5


# --------------------------------------------------------------------------------------------------------- top-down


def plain_top_down(network, params, teacher, sight, cut):
    """The sum of energies with predictors told from above, as a Python loop; cut or whole between the levels."""
    stop = jax.lax.stop_gradient
    at = lambda tree, i: jax.tree.map(lambda x: x[i], tree)  # noqa: E731
    z, full = rules.start(network, params.encoder.embed, sight), network.embed(teacher.embed, sight.patches)
    states, goals = [], []
    for i in range(MODEL.levels):
        full, goal = rules.teach(network, at(teacher.levels, i), full, sight)
        z = [network.encode(at(params.encoder.levels, i), x, m.context) for x, m in zip(z, sight.masks, strict=True)]
        states.append(z)
        goals.append(goal)
        z = stop(z) if cut else z
    above, total = [jnp.zeros_like(g) for g in goals[0]], 0.0
    for i in reversed(range(MODEL.levels)):
        tree, own = at(params.predictors, i), at(params.encoder.levels, i)
        guess = [network.predict(tree, network.norm(own, x), m, kind, q)
                 for kind, (x, m, q) in enumerate(zip(states[i], sight.masks, above, strict=True))]
        total += sum(jnp.mean(jnp.abs(t - g)) for g, t in zip(guess, goals[i], strict=True)) / 2
        above = stop(guess)
    return total


@pytest.mark.parametrize(("name", "cut"), [("local", True), ("backprop_all", False)])
def test_rules_told_from_above_are_the_gradient_of_the_sum(name, cut):
    """What is heard from above passes no gradient on, under backprop neither."""
    case = made(LEARN["down"])
    gradient, error = compiled(topdown.RULES[name], static_argnums=0)(*case)
    plain = compiled(jax.value_and_grad(plain_top_down, 1), static_argnums=(0, 4))
    total, expected = plain(*case, cut)
    assert largest_gap(gradient, expected) < 1e-5
    np.testing.assert_allclose(jnp.sum(error), total, rtol=1e-6)


def test_deaf_predictors_learn_as_without_a_level_above():
    network, params, teacher, sight = made(LEARN["down"])
    deaf = {**params.predictors, "above": jax.tree.map(jnp.zeros_like, params.predictors["above"])}
    params = params._replace(predictors=deaf)
    for name, rule in topdown.RULES.items():
        told, _ = compiled(rule, static_argnums=0)(network, params, teacher, sight)
        plain, _ = compiled(getattr(rules, name), static_argnums=0)(network, params, teacher, sight)
        assert largest_gap(told.encoder, plain.encoder) < 1e-5
        assert float(jnp.max(jnp.abs(told.predictors["above"]["linear"]["kernel"]))) > 1e-4


# ------------------------------------------------------------------------------------------------------ V-JEPA 2.1


def test_nearness_is_brute_force_nearness():
    masks = Masks(jnp.array([[0, 7, 20]]), jnp.array([[5, 30]]))
    place = np.array([(t, h, w) for t in range(2) for h in range(4) for w in range(4)], float)
    expected = [min(np.linalg.norm(place[c] - place[t]) for t in (5, 30)) ** -0.5 for c in (0, 7, 20)]
    np.testing.assert_allclose(dense.nearness((2, 4, 4), masks)[0], expected, rtol=1e-6)


def test_dense_is_the_published_loss():
    """Against the formula for one clip and one kind of mask at a time, level by level, half-way up the ramp (1/4)."""
    network, params, teacher, sight = case = made(LEARN["dense"])

    def plain(params):
        losses = []
        for kind, m in enumerate(sight.masks):
            for b in range(2):
                one = Masks(m.context[b : b + 1], m.target[b : b + 1])
                z = network.embed(params.encoder.embed, sight.patches[b : b + 1][:, one.context[0]])
                full, own, goals = network.embed(teacher.embed, sight.patches[b : b + 1]), [], []
                for i in range(MODEL.levels):
                    mine, theirs = (jax.tree.map(lambda x, i=i: x[i], t.levels) for t in (params.encoder, teacher))
                    z = network.encode(mine, z, one.context)
                    full = network.encode(theirs, full, jnp.arange(32)[None])
                    own.append(network.norm(mine, z))
                    goals.append(jax.nn.standardize(network.norm(theirs, full), epsilon=1e-5))
                tree = jax.tree.map(lambda x: x[0], params.predictors)
                ahead, beside = network.predict(tree, jnp.concatenate(own, -1), one, kind)
                goal = jax.lax.stop_gradient(jnp.concatenate(goals, -1))
                near = dense.nearness(MODEL.grid, one)
                hidden = jnp.mean(jnp.abs(goal[:, one.target[0]] - ahead))
                seen = jnp.mean(near[..., None] * jnp.abs(goal[:, one.context[0]] - beside))
                losses.append(hidden + 0.25 * seen)
        return sum(losses) / len(losses)

    gradient, error = run(LEARN["dense"], *case)
    assert largest_gap(gradient, compiled(jax.grad(plain))(params)) < 1e-5
    assert error.shape == (MODEL.levels,)


@pytest.mark.parametrize(("progress", "weight"), [(0.0, 0.0), (0.25, 0.0), (0.5, 0.25), (0.75, 0.5), (1.0, 0.5)])
def test_the_context_loss_comes_in_gradually(progress, weight):
    assert float(dense.ramp(LEARN["dense"], jnp.array(progress))) == pytest.approx(weight)
