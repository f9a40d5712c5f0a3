"""Laws of the bridge to PCX: it has the native engine's energies, settled states and gradients, on any hierarchy."""

import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

pytest.importorskip("pcx", reason="PCX is optional")

import pcx
import pcx.functional as pxf
import pcx.nn as pxnn
import pcx.predictive_coding as pxc
import pcx.utils as pxu

from cora import config, train
from cora import pcx as bridge
from cora.nets import chain
from cora.nets.hierarchy import build
from cora.pc import energy as F
from cora.pc import learn, presets
from cora.pc.infer import Inference, Settled
from cora.pc.learn import Learning
from cora.store import weights
from cora.types import Evidence, Level

compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": "0"})
MODEL = config.Model(frames=4, size=16, patch=8, tubelet=2, width=16, heads=2, levels=2, blocks=1, predictor_width=8,
                     predictor_heads=1)
NETS = ["tanh squared", "relu cross_entropy", "tanh clamped", "relu decode", "tanh repeated", "tanh tree"]


@pytest.fixture
def float64():
    with jax.enable_x64(True):
        yield


def bare(tree):
    """Without what only the native engine hands on, the moments of its optimiser."""
    def drop(part):
        return part._replace(moments=None) if isinstance(part, Settled) else part

    return jax.tree.map(drop, tree, is_leaf=lambda part: isinstance(part, Settled))


def near(a, b, tolerance=1e-12):
    a, b = bare(a), bare(b)
    assert jax.tree.structure(a) == jax.tree.structure(b)
    gaps = [float(jnp.max(jnp.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)]
    assert max(gaps) <= tolerance, gaps


def gap(a, b):
    return max(float(jnp.max(jnp.abs(x - y))) for x, y in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True))


def weight_of(rng, hierarchy):
    return tuple(float(x) for x in rng.uniform(0.3, 2, sum(level.repeat for level in hierarchy)))


def repeated():
    """One Level in three copies that all have a goal: z_l = z_{l-1} + W tanh(z_{l-1}), read out by a matrix."""
    up = lambda theta, x, context: x + jnp.tanh(x) @ theta["w"]  # noqa: E731
    across = lambda theta, x, context: x @ theta["v"]  # noqa: E731
    init = lambda key: ({"w": jax.random.normal(key, (3, 4, 4)), "v": jax.random.normal(key, (3, 4, 2))},)  # noqa: E731
    return (Level(up, across, chain.smooth_l1, repeat=3),), init, (jnp.ones((3, 5, 2)),)


def tree():
    """Two Levels whose state is a list of two arrays that the context mixes; the upper one in two copies."""
    def up(theta, x, context):
        return [jnp.tanh(x[0] @ theta[0] + context * x[1] @ theta[1]), jnp.tanh(x[1] @ theta[1])]

    def across(theta, z, context):
        return [z[1] @ theta[0], z[0] @ theta[1]]

    def judge(guess, goal):
        return chain.squared(guess[0], goal[0]) * chain.squared(guess[1], goal[1]) / 9

    init = lambda key: tuple((jax.random.normal(jax.random.fold_in(key, i), (n, 4, 4)),  # noqa: E731
                              jax.random.normal(jax.random.fold_in(key, i + 2), (n, 4, 4)))
                             for i, n in enumerate((2, 2)))
    hierarchy = (Level(up, repeat=2), Level(up, across, judge, repeat=2))
    return hierarchy, init, (None, [jnp.ones((2, 5, 4)), jnp.zeros((2, 5, 4))])


@pytest.fixture(params=NETS)
def case(request, float64):
    """A network drawn at random: energy with uneven weights, parameters, evidence."""
    rng = np.random.default_rng(NETS.index(request.param))
    act, kind = request.param.split()
    context, top = None, None
    sizes = tuple(int(n) for n in rng.integers(3, 7, 5))
    if kind in ("repeated", "tree"):
        hierarchy, init, goals = repeated() if kind == "repeated" else tree()
        x = jnp.asarray(rng.normal(size=(5, 4)))
        x, context = (x, None) if kind == "repeated" else ([x, 2 * x], jnp.asarray(rng.normal(size=(5, 1))))
    else:
        loss = chain.cross_entropy if kind == "cross_entropy" else chain.squared
        net = chain.mlp(sizes, {"tanh": jnp.tanh, "relu": jax.nn.relu}[act], loss, clamped=kind == "clamped",
                        decode=kind == "decode")
        hierarchy, init, x = net.hierarchy, net.init, jnp.asarray(rng.normal(size=(5, sizes[0])))
        y = jax.nn.softmax(jnp.asarray(rng.normal(size=(5, sizes[-1]))))
        goals, top = ((), y) if kind == "clamped" else ((None,) * (len(hierarchy) - 1) + (y[None],), None)
    shapes = jax.eval_shape(init, jax.random.key(0))
    params = jax.tree.map(lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.6), shapes)
    precision, target, reverse = (weight_of(rng, hierarchy) for _ in range(3))
    target = target if any(level.readout for level in hierarchy) else 1.0  # weights that nothing reads are refused
    reverse = reverse if any(level.decode for level in hierarchy) else 1.0
    return F.Energy(hierarchy, precision, target, reverse), params, Evidence(x, goals, context, top)


def test_energies_are_the_native_ones_at_any_states(case):
    energy, params, evidence = case

    @compiled
    def both(params, evidence):
        model = bridge.network(energy, params, evidence)
        away = optax.tree.random_like(jax.random.key(7), F.forward(energy, params, evidence))
        bridge.shake(energy, model, away, 1.0)
        model(evidence.input, evidence.context)
        z = bridge.stacked(energy, model, bridge.VodeLevel.state)
        ours = [level.energy() for level in model.levels]
        native = F.terms(energy, params, z, evidence)
        return (jnp.stack(ours), model.energy(), z), (sum(jnp.sum(term, axis=1) for term in native),
                                                      F.total(energy, params, z, evidence), F.clamp(z, evidence))

    ours, native = both(params, evidence)
    near(ours, native, 1e-10)
    assert float(jnp.min(ours[0])) > 0.1


def chosen(name, hierarchy):
    if name == "momentum":
        return Inference(steps=4, optimiser=optax.sgd(0.05, momentum=0.9)), Learning()
    if name == "schedule":
        levels = float(F.Energy(hierarchy).depth)
        return Inference(steps=3, precision=lambda step: 1.0 + step + jnp.arange(levels)), Learning()
    return presets.preset(name, hierarchy, 4, 0.1)


@pytest.mark.parametrize("case, name", [(net, "pc") for net in NETS] + [
    ("relu cross_entropy", "nudged"), ("tanh clamped", "nudged"), ("tanh tree", "momentum"),
    ("tanh repeated", "schedule"), ("tanh clamped", "schedule"),
], indirect=["case"])
def test_settled_states_and_gradients_are_the_native_ones(case, name):
    """Gradient, states, errors, energies of every step and residuals, to rounding in float64."""
    energy, params, evidence = case
    rule = chosen(name, energy.hierarchy)
    ours, theirs = (compiled(lambda p, e, of=of: of.learn(energy, p, e, rule))(params, evidence)
                    for of in (bridge, learn))
    near(ours, theirs)
    assert float(jnp.min(theirs[-1].residual)) > 1e-3  # the states have moved


def test_noise_is_the_native_noise(float64):
    net = chain.mlp((3, 4, 5, 2), jnp.tanh)
    params, x = net.init(jax.random.key(0)), jax.random.normal(jax.random.key(1), (6, 3))
    energy, evidence = F.Energy(net.hierarchy), Evidence(x, (None, jnp.ones((1, 6, 2))))
    rule = presets.preset("mcpc", net.hierarchy, 4, 0.05)
    run = lambda of, seed: compiled(lambda p: of.learn(energy, p, evidence, rule, jax.random.key(seed)))(params)  # noqa: E731
    near(run(bridge, 3), run(learn, 3))
    assert gap(run(bridge, 3), run(bridge, 4)) > 1e-2
    with pytest.raises(ValueError, match="needs a key"):
        bridge.learn(energy, params, evidence, rule)


def test_a_clamped_top_stays_where_it_is_under_noise(float64):
    net = chain.mlp((3, 4, 2), jnp.tanh, clamped=True)
    params, evidence = net.init(jax.random.key(0)), Evidence(jnp.ones((6, 3)), top=jnp.full((6, 2), 0.5))
    rule = presets.preset("mcpc", net.hierarchy, 4, 0.05)
    _, settled, _ = bridge.learn(F.Energy(net.hierarchy), params, evidence, rule, jax.random.key(0))
    near(settled.z[-1][-1], evidence.top, 0.0)


@pytest.fixture(scope="module")
def video():
    """A small video network, drawn weights of learner and teacher (without the cost of compiling its init), clips."""
    network, rng = build(MODEL), np.random.default_rng(0)
    shapes = jax.eval_shape(network.init, jax.random.key(0))
    draw = lambda leaf: jnp.asarray(rng.normal(size=leaf.shape) * 0.2, leaf.dtype)  # noqa: E731
    params, teacher = (jax.tree.map(draw, shapes) for _ in range(2))
    return network, params, teacher.encoder, jnp.asarray(rng.integers(0, 256, (2, 4, 16, 16, 3)), jnp.uint8)


def test_a_training_step_of_a_video_network_is_the_same_under_both_engines(video):
    _, params, teacher, clips = video
    moved = []
    for engine in ("native", "pcx"):
        made = config.Pretrain(model=MODEL, learn=config.Learn(rule="pc"), infer=config.Infer(engine=engine, steps=2),
                               optim=config.Optim(warmup=0.0), run=config.Run(steps=4, batch=2))
        moments = train.optimiser(made.optim, made.run.steps).init(params)
        state = train.TrainState(jnp.zeros((), jnp.int32), params, teacher, moments)
        moved.append(compiled(train.make_step(made))(state, (clips,)))
    (native, seen), (ours, same) = moved
    near(same, seen, 1e-4)
    first, other = native.optimiser[0].mu, ours.optimiser[0].mu  # a tenth of the gradients
    assert gap(first, other) < 1e-6 + 1e-4 * max(float(jnp.max(jnp.abs(leaf))) for leaf in jax.tree.leaves(first))
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in jax.tree.leaves(other))


def test_only_the_engine_that_is_asked_for_is_taken(monkeypatch):
    asked = lambda rule, engine: train.engine(  # noqa: E731
        config.Pretrain(model=MODEL, learn=config.Learn(rule=rule), infer=config.Infer(engine=engine)))
    assert asked("pc", "native") is learn.learn and asked("pc", "pcx") is bridge.learn
    with pytest.raises(config.ConfigError, match=r"infer.engine = 'pcx'.* 'local'; nearest: 'native'"):
        asked("local", "pcx")
    monkeypatch.delitem(sys.modules, "cora.pcx")
    monkeypatch.delattr("cora.pcx")
    monkeypatch.setitem(sys.modules, "pcx", None)
    with pytest.raises(config.ConfigError, match="pcx is not installed; run `pip install --no-deps pcx"):
        asked("pc", "pcx")


@pytest.mark.parametrize("name, field", [
    ("exact", "variable = 'error'"), ("epc", "variable = 'error'"), ("pc_ode", "variable = 'flow'"),
    ("local", "linearise = 'forward'"), ("fixed_pred", "linearise = 'forward'"), ("strict", "keep = 'stale'"),
    ("zil", "keep = 'arrival'"), ("hpc", "forward_only = True"), ("ipc", "when = 'every'"),
    ("accumulate", "when = 'sum'"),
])
def test_rules_that_pcx_does_not_have_are_refused(name, field):
    net = chain.mlp((3, 4, 2), decode=name == "hpc")
    params, evidence = net.init(jax.random.key(0)), Evidence(jnp.ones((2, 3)), (jnp.ones((1, 2, 2)),))
    with pytest.raises(ValueError, match=f"^{field}: PCX has no such rule; nearest: '?(state|current|last|settled|F)"):
        bridge.learn(F.Energy(net.hierarchy), params, evidence, presets.preset(name, net.hierarchy))


def test_a_stop_rule_is_refused():
    with pytest.raises(ValueError, match=r"^stop = 0.1: .* nearest: 0.0"):
        bridge.supported((Inference(stop=0.1), Learning()))


def small():
    net = chain.mlp((3, 4, 5, 2), jnp.tanh)
    evidence = Evidence(jax.random.normal(jax.random.key(1), (6, 3)), (None, jnp.ones((1, 6, 2))))
    return F.Energy(net.hierarchy), net.init(jax.random.key(0)), evidence


def test_steps_are_scanned_not_unrolled():
    energy, params, evidence = small()
    size = lambda steps: len(str(jax.make_jaxpr(  # noqa: E731
        lambda p: bridge.learn(energy, p, evidence, presets.preset("pc", energy.hierarchy, steps)))(params)))
    assert size(40) < 1.02 * size(2)


def test_the_global_random_key_is_left_alone():
    energy, params, evidence = small()
    before = np.asarray(pcx.RKG.key.get())
    rule = presets.preset("pc", energy.hierarchy, 2)
    compiled(lambda p: bridge.learn(energy, p, evidence, rule))(params)
    np.testing.assert_array_equal(before, np.asarray(pcx.RKG.key.get()))
    with pytest.raises(TypeError):
        compiled(lambda p: bridge.learn(energy, p, evidence._replace(input="none"), rule))(params)
    np.testing.assert_array_equal(before, np.asarray(pcx.RKG.key.get()))


def test_vodes_follow_pcxs_own_numerics():
    """No state energy at the forward pass; half the sum of squares off it; clamped vodes do not count as free."""
    energy, params, evidence = small()
    model = bridge.network(energy, params, evidence._replace(goals=()))
    assert all(vode.cache.get() is None for level in model.levels for vode in level.vodes)
    model(evidence.input)
    assert float(model.energy()) == pytest.approx(0, abs=1e-10)
    model.clear_params(pxc.VodeParam.Cache)
    vode = model.levels[0].vodes[0]
    vode.set("h", vode.get("h") + 2.0)
    model(evidence.input)
    assert float(vode.energy()) == pytest.approx(2 * vode.get("h").size, rel=1e-6)
    assert vode.cache.get("E") is not None


def test_masks_tell_states_from_weights_and_clamps():
    energy, params, evidence = small()
    top = bridge.network(energy, params, evidence._replace(top=jnp.zeros((6, 5))))
    count = lambda mask: len(jax.tree.leaves(mask(top)))  # noqa: E731
    assert count(pxu.M(pxnn.LayerParam)) == 6  # a weight and a bias of f_1, f_2 and g
    assert count(pxu.M(pxc.VodeParam)) == 3 and count(bridge.free()) == 1  # z_1; not the goal, not the top
    assert count(pxu.M(bridge.Weight)) == 3
    top.clear_params(pxc.VodeParam)
    assert count(pxu.M(pxc.VodeParam)) == 0 and count(pxu.M(pxnn.LayerParam)) == 6


@pytest.fixture(scope="module")
def pretrained(video, tmp_path_factory):
    folder = tmp_path_factory.mktemp("exported")
    weights.save(folder, MODEL, video[1].encoder)
    return weights.load(folder)


def patches_of(pretrained, video):
    return pretrained.network.patches(video[-1])


def test_a_pretrained_encoder_has_the_same_latents_in_pcx(pretrained, video):
    @compiled
    def wrapped(encoder, patches, ids):
        model = bridge.encoder(pretrained.network, encoder)
        with pxu.step(model, pxc.STATUS.INIT):
            return model(patches, ids), model.energy()

    patches = patches_of(pretrained, video)
    latents, energy = wrapped(pretrained.encoder, patches, None)
    np.testing.assert_allclose(latents, pretrained(np.asarray(video[-1])), atol=1e-5)
    assert float(energy) == 0.0
    some = jnp.array([[0, 3, 5], [1, 2, 7]])
    seen, _ = wrapped(pretrained.encoder, jnp.take_along_axis(patches, some[..., None], axis=1), some)
    assert seen.shape == (2, 2, 3, 16)


def test_a_pretrained_encoder_obeys_a_users_ruleset(pretrained, video):
    """Its states are passed by, or overwritten through a transformation, as PCX's user chooses, and it learns."""
    rules = {"forward": ("h -> u",), "hold": ("h <- u:half", "u <- u")}
    tforms = {"half": lambda vode, key, value, rkg: value / 2}

    @compiled
    def use(encoder, patches):
        model = bridge.encoder(pretrained.network, encoder, ruleset=rules, tforms=tforms)
        found = []
        for status in (pxc.STATUS.INIT, "forward", pxc.STATUS.NONE, "hold"):
            with pxu.step(model, status, clear_params=pxc.VodeParam.Cache):
                found.append((model(patches), model.energy()))
            if status == pxc.STATUS.INIT:
                first = model.levels[0].vodes[0]
                held = first.get("h")
                first.set("h", 0 * held)
        slope = pxf.value_and_grad(pxu.M(pxnn.LayerParam).to((False, True)))(
            lambda x, *, model: (model(x), model.energy())[1])
        with bridge.own_keys():
            _, gradient = slope(patches, model=model)
        return found, held, first.get("h"), bridge.unwrap(gradient["model"].levels[1].theta["blocks"])

    found, held, halved, gradient = use(pretrained.encoder, patches_of(pretrained, video))
    (first, _), (forward, _), (moved, energy), _ = found
    np.testing.assert_allclose(forward, first, atol=1e-5)
    assert gap(moved, first) > 1e-2 and float(energy) > 1e-2
    np.testing.assert_allclose(halved, held / 2, atol=1e-5)
    assert all(float(jnp.max(jnp.abs(leaf))) > 0 for leaf in jax.tree.leaves(gradient))


def test_a_wrapped_encoder_can_be_vmapped_over_samples(pretrained, video):
    """PCX's usual way: each sample alone, its Vodes batched by the transformation."""
    @compiled
    def each(encoder, patches):
        model = bridge.encoder(pretrained.network, encoder)
        mask = pxu.M(pxc.VodeParam | pxc.VodeParam.Cache).to((None, 0))
        with pxu.step(model, pxc.STATUS.INIT), bridge.own_keys():
            return pxf.vmap({"model": mask}, in_axes=(0,), out_axes=0)(lambda x, *, model: model(x[None]))(
                patches, model=model)

    latents = each(pretrained.encoder, patches_of(pretrained, video))
    np.testing.assert_allclose(jnp.moveaxis(latents[:, :, 0], 0, 1), pretrained(np.asarray(video[-1])), atol=1e-5)
