"""The table of presets: names, what is refused, and that every row trains."""

import jax
import jax.numpy as jnp
import optax
import pytest

from cora.nets import chain
from cora.pc.energy import Energy, forward, read
from cora.pc.infer import Inference
from cora.pc.learn import Learner, learn, step
from cora.pc.presets import ALONE, PRESETS, preset
from cora.schema import ConfigError
from cora.types import Evidence

NAMES = {"local", "pc", "pc_ode", "ipc", "hybrid", "zil", "epc", "nudged", "fixed_pred", "strict", "accumulate", "mcpc",
         "hpc", "bpc", "exact", "bp", "zil_pc"}


def test_every_algorithm_of_the_field_has_its_row():
    assert set(PRESETS) == NAMES


def test_a_misspelt_preset_is_told_the_nearest():
    with pytest.raises(KeyError, match="nearest: 'fixed_pred'"):
        preset("fixedpred", chain.mlp((3, 4, 2)).hierarchy)


@pytest.mark.parametrize("name", sorted(NAMES))
def test_every_preset_lowers_the_loss_of_a_small_network(name):
    two_way = name in ("hpc", "bpc")
    net = chain.mlp((4, 8, 8, 2), jnp.tanh, clamped=two_way, decode=two_way)
    x = jax.random.normal(jax.random.key(1), (32, 4))
    y = 2 * jnp.stack([x[:, 0] - x[:, 1], x[:, 2]], axis=1)
    params = net.init(jax.random.key(0))
    evidence = Evidence(x, top=y) if two_way else Evidence(x, (None,) * (len(net.hierarchy) - 1) + (y[None],))
    energy, rule = Energy(net.hierarchy), preset(name, net.hierarchy, *(() if name in ALONE else (8, 0.1)))
    tx = optax.adam(1e-2)

    @jax.jit
    def many(learner):
        def one(learner, key):
            return step(energy, learner, evidence, rule, tx, key)[0], None

        return jax.lax.scan(one, learner, jax.random.split(jax.random.key(2), 100))[0]

    @jax.jit
    def loss(params):
        z = forward(energy, params, evidence)
        guess = z[-1][-1] if two_way else read(energy, params, z, None)[-1][-1]
        return jnp.mean(jnp.square(guess - y))

    before = float(loss(params))
    after = float(loss(many(Learner(params, tx.init(params))).params))
    assert after < 0.5 * before


def test_a_rule_that_learns_while_it_settles_has_no_one_gradient():
    net = chain.mlp((3, 4, 2))
    with pytest.raises(ValueError, match="when = 'every'"):
        rule = preset("ipc", net.hierarchy)
        learn(Energy(net.hierarchy), net.init(jax.random.key(0)), Evidence(jnp.zeros((1, 3))), rule)


@pytest.mark.parametrize(("field", "value"), [("steps", -1), ("noise", -1.0), ("stop", -0.5)])
def test_an_impossible_inference_is_refused_when_made(field, value):
    with pytest.raises(ValueError, match=f"{field} = {value}"):
        Inference(**{field: value})


def test_noise_without_a_key_is_refused():
    net = chain.mlp((3, 4, 2))
    evidence = Evidence(jnp.zeros((1, 3)), (jnp.zeros((1, 1, 2)),))
    with pytest.raises(ValueError, match="needs a key"):
        learn(Energy(net.hierarchy), net.init(jax.random.key(0)), evidence, preset("mcpc", net.hierarchy))


NET, BOTH = chain.mlp((4, 5, 5, 2), jnp.tanh), chain.mlp((4, 5, 5, 2), jnp.tanh, decode=True)
HALF = (BOTH.hierarchy[0], BOTH.hierarchy[1]._replace(decode=None))


@pytest.mark.parametrize(("make", "words"), [
    (lambda: preset("hpc", NET.hierarchy), "preset.name = 'hpc': no level of this hierarchy decodes"),
    (lambda: preset("bpc", NET.hierarchy), "preset.name = 'bpc': no level of this hierarchy decodes; nearest: 'pc'"),
    (lambda: preset("hpc", HALF), "preset.hierarchy = .*level 2 .*decodes nothing, and level 1 moves under that alone"),
    (lambda: preset("zil", BOTH.hierarchy), "preset.name = 'zil': goes by when the output's error arrives"),
    (lambda: preset("zil_pc", BOTH.hierarchy), "preset.name = 'zil_pc': goes by when"),
    (lambda: preset("zil", NET.hierarchy, steps=50), "preset.steps = 50: nothing reads it under 'zil'"),
    (lambda: preset("exact", NET.hierarchy, rate=0.5), "preset.rate = 0.5: nothing reads it under 'exact'"),
    (lambda: preset("zil_pc", NET.hierarchy, steps=2), "preset.steps = 2: every layer of 3 needs a turn; nearest: 3"),
    (lambda: preset("pc", 3), "preset.hierarchy = 3: must be a tuple"),
    (lambda: preset("pc", NET), "preset.hierarchy = .*its .hierarchy is"),
])
@pytest.mark.usefixtures("as_users_have_it")
def test_a_preset_that_does_not_fit_the_hierarchy_is_refused(make, words):
    with pytest.raises(ConfigError, match=words):
        make()


def test_a_rule_reads_the_depth_off_the_hierarchy():
    for sizes, levels in (((4, 5, 2), 1), ((4, 5, 5, 5, 5, 5, 2), 5)):
        assert preset("zil", chain.mlp(sizes).hierarchy)[0].steps == levels + 1
    assert preset("zil_pc", NET.hierarchy)[0].steps == 8
    assert preset("zil_pc", chain.mlp((4, *[5] * 9, 2)).hierarchy)[0].steps == 10
