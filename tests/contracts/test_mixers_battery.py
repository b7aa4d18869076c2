"""What every mixer promises, over the list of all of them. A new mixer joins by one line in `CASES`."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from mixcon import mixers as m

B, SIZE, CLASSES = 8, 16, 5
KEY = jax.random.key(7)
LABELS = jnp.arange(B) % 3


def images(seed=0):
    return jax.random.uniform(jax.random.key(seed), (B, SIZE, SIZE, 3))


def saliency(x):
    return jax.lax.stop_gradient(jnp.abs(x - 0.5).mean(axis=-1))


def patches(x, side):
    """A map [B, side²] that stands for attention."""
    return (
        jax.lax.stop_gradient(x)
        .reshape(B, side, SIZE // side, side, SIZE // side, 3)
        .mean(axis=(2, 4, 5))
        .reshape(B, -1)
    )


def features(x):
    return jax.lax.stop_gradient(x).reshape(B, 4, 4, 4, 4, 3).transpose(0, 1, 3, 2, 4, 5).reshape(B, 4, 4, 48)[..., :8]


def percent(x):
    map_ = saliency(x)
    return map_ / map_.sum(axis=(1, 2), keepdims=True)


def automix(variant, key, x):
    block = m.MixBlock(8, 4, variant=variant, rngs=nnx.Rngs(0))
    return m.automix(block, features(x), m.choose_partner(key, B), m.sample_weight(key, 1)[0])


def adautomix(key, x):
    net = m.AdaptiveMask(8, 4, rngs=nnx.Rngs(0))
    plan = m.simplex_mixup(key, x)
    return m.adautomix(net, features(x), plan.partner, plan.weight[0])


def adamixup(key, x):
    head = m.PolicyHead(SIZE * SIZE * 3, rngs=nnx.Rngs(0))
    plan = m.mixup(key, x)
    return plan._replace(weight=m.interval_weight(head(x.reshape(B, -1)), jax.random.uniform(key, (B,))).weight)


def sumix(key, x):
    clean, mixed = jnp.split(x.reshape(B, -1)[:, : 2 * CLASSES], 2, axis=1)
    return m.sumix_relabel(m.mixup(key, x), clean, mixed, LABELS)[0]


@dataclass(frozen=True)
class Case:
    name: str
    policy: Callable
    region: bool = False  # its weight is its mask's mean
    unit: bool = True  # its target weights sum to one


SMALL_PASTE = partial(m.resizemix, scope=(0.2, 0.8))

CASES = [
    Case("mixup", m.mixup),
    Case("mixup per pair", partial(m.mixup, per="pair")),
    Case("mixup per example", partial(m.mixup, per="example")),
    Case("manifold_mixup", lambda key, x: m.manifold_mixup(key, x)[0]),
    Case("mixco", m.mixco),
    Case("imix", m.imix),
    Case("multi_mixup", lambda key, x: jax.tree.map(lambda a: a[1], m.multi_mixup(key, x))),
    Case("cmixup", lambda key, x: m.cmixup(key, x, labels=LABELS.astype(jnp.float32), bandwidth=1.0)),
    Case("cmixup pool", lambda key, x: m.mixup(key, x, partner=m.label_pool_partner(
        key, jnp.arange(B), LABELS.astype(jnp.float32), bandwidth=1.0))),
    Case("regmixup", m.regmixup),
    Case("simplex_mixup", m.simplex_mixup),
    Case("same class", lambda key, x: m.mixup(key, x, partner=m.same_class_partner(key, LABELS))),
    Case("other class", lambda key, x: m.mixup(key, x, partner=m.other_class_partner(key, LABELS))),
    Case("nearest", lambda key, x: m.mixup(key, x, partner=m.nearest_partner(key, x.reshape(B, -1)))),
    Case("cutmix", m.cutmix, region=True),
    Case("cutmix per pair", partial(m.cutmix, per="pair"), region=True),
    Case("cutmix per example", partial(m.cutmix, per="example"), region=True),
    Case("smoothmix", m.smoothmix, region=True),
    Case("gridmix", partial(m.gridmix, holes=(2, 4)), region=True),
    Case("gridmix per example", partial(m.gridmix, holes=(2, 4), per="example", legacy_wrap=True), region=True),
    Case("resizemix", SMALL_PASTE, region=True),
    Case("resizemix bilinear", partial(m.resizemix, scope=(0.2, 0.8), bilinear=True, per="example"), region=True),
    Case("fmix", m.fmix, region=True),
    Case("fmix intended", partial(m.fmix, spectrum="intended", soft=0.2, per="example"), region=True),
    Case("saliencymix", lambda key, x: m.saliencymix(key, x, saliency=saliency(x)), region=True),
    Case("attentivemix", lambda key, x: m.attentivemix(key, x, features=features(x)), region=True),
    Case("guidedmixup", lambda key, x: m.guidedmixup(key, x, saliency=saliency(x)), region=True),
    Case("snapmix", lambda key, x: m.snapmix(key, x, percent=percent(x), labels=LABELS), unit=False),
    Case("puzzlemix", lambda key, x: m.puzzlemix(key, x, saliency=saliency(x), block_nums=(2, 4)), region=True),
    Case("alignmix", m.alignmix),
    Case("token_cutmix", partial(m.token_cutmix, patch=4), region=True),
    Case("tokenmix", partial(m.tokenmix, side=8, minimum=4), region=True),
    Case("tokenmix attention", lambda key, x: m.tokenmix(key, x, side=8, minimum=4, mode="random",
                                                         attention=patches(x, 8)), unit=False),
    Case("transmix", lambda key, x: m.transmix_relabel(m.cutmix(key, x), patches(x, 4))),
    Case("maskmix", partial(m.maskmix, cell=4), region=True),
    Case("mixpro", lambda key, x: m.mixpro_relabel(m.maskmix(key, x, cell=4), patches(x, 4),
                                                   x.reshape(B, -1)[:, :CLASSES], LABELS)),
    Case("smmix", lambda key, x: m.smmix(key, x, attention=patches(x, 8)), region=True),
    Case("mergemix", lambda key, x: m.mergemix(key, x, attention=patches(x, 8)), region=True),
    Case("mergemix drawn", lambda key, x: m.mergemix(key, x, attention=patches(x, 8), drawn_label=True)),
    Case("sumix", sumix),
    Case("mixup_or_cutmix", m.mixup_or_cutmix, region=True),
    Case("mixup_or_cutmix per example", partial(m.mixup_or_cutmix, per="example", prob=0.7), region=True),
    Case("switch with moves", partial(m.switch, policies=[m.mixup, SMALL_PASTE]), region=True),
    Case("unmix", m.unmix, region=True),
    Case("compose", lambda key, x: m.compose(m.cutmix(KEY, x), m.mixup(key, x)), region=True),
    Case("gate", lambda key, x: m.gate(m.fmix(key, x), jnp.arange(B) % 2 == 0), region=True),
    Case("automix", partial(automix, "automix")),
    Case("samix", partial(automix, "samix")),
    Case("adautomix", adautomix),
    Case("adamixup", adamixup),
]  # fmt: skip
EACH = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
TRACES: dict[str, int] = {}
QUICK = {"xla_backend_optimization_level": 0}  # compiling is what this file spends its time on


def whole(plan):
    """The plan with every example left whole."""
    if plan.partner.ndim == 1:
        return m.gate(plan, jnp.bool_(False))
    first = jnp.zeros_like(plan.weight).at[:, 0].set(1.0)
    own = jnp.broadcast_to(jnp.arange(B, dtype=jnp.int32)[:, None], plan.partner.shape)
    mask = None if plan.mask is None else jnp.zeros_like(plan.mask).at[..., 0].set(1.0)
    return plan._replace(partner=own, weight=first, mask=mask)


def run(case, key, x):
    TRACES[case.name] = TRACES.get(case.name, 0) + 1

    def energy(x):
        plan = case.policy(key, x)
        return jnp.square(m.mix(plan, x)).sum(), plan

    grad, plan = jax.grad(energy, has_aux=True)(x)
    return {
        "plan": plan,
        "mixed": m.mix(plan, x),
        "targets": m.mix_targets(plan, LABELS, num_classes=CLASSES),
        "grad": grad,
        "whole": m.mix(whole(plan), x),
    }


@cache
def compiled(case):
    return jax.jit(partial(run, case), compiler_options=QUICK)


@cache
def result(case):
    return jax.device_get(compiled(case)(KEY, images()))


def same(ours, theirs, tolerance=1e-5):
    assert jax.tree.structure(ours) == jax.tree.structure(theirs)
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        assert a.dtype == b.dtype
        if np.issubdtype(a.dtype, np.integer):
            np.testing.assert_array_equal(a, b)
        else:
            np.testing.assert_allclose(a, b, rtol=tolerance, atol=tolerance)


def test_the_list_is_complete():
    tested = " ".join(c.name for c in CASES)
    missing = [name for name in (*m.MIXERS, *m.LEARNED) if name not in tested]
    assert missing in (["spanmix", "augmix"], ["augmix", "spanmix"])  # a text mixer and an image one: tested below


@EACH
def test_plan_is_well_formed(case):
    plan = result(case)["plan"]
    assert plan.partner.dtype == np.int32
    assert plan.weight.dtype == np.float32
    assert plan.partner.shape == plan.weight.shape
    assert plan.partner.shape[0] == B
    assert ((plan.partner >= 0) & (plan.partner < B)).all()
    assert ((plan.weight >= -1e-6) & (plan.weight <= 2 + 1e-6)).all()
    if plan.mask is not None:
        assert plan.mask.dtype == np.float32
        assert plan.mask.shape[:3] in ((B, SIZE, SIZE), (1, SIZE, SIZE))
        assert plan.mask.min() >= 0
        assert plan.mask.max() <= 1 + 1e-6


@EACH
def test_weight_one_is_the_identity(case):
    np.testing.assert_array_equal(result(case)["whole"], images())


@EACH
def test_target_weights_sum_to_one(case):
    sums = result(case)["targets"].sum(axis=1)
    if case.unit:
        np.testing.assert_allclose(sums, 1, rtol=1e-5)
    else:
        assert (sums >= 0).all()
        assert (sums <= 2 + 1e-5).all()


@EACH
def test_corrected_weight_is_the_mean_of_the_mask(case):
    plan = result(case)["plan"]
    if case.region:
        own = plan.mask.mean(axis=(1, 2))
        weight = plan.weight[:, None] if plan.weight.ndim == 1 else plan.weight
        np.testing.assert_allclose(weight, np.broadcast_to(own, weight.shape), rtol=1e-5, atol=1e-6)


@EACH
def test_gradients_are_finite(case):
    grad = result(case)["grad"]
    assert np.isfinite(grad).all()
    assert np.abs(grad).max() > 0


@EACH
def test_same_key_same_plan_other_key_other_plan_one_trace(case):
    first = result(case)
    traced = TRACES[case.name]
    same(jax.device_get(compiled(case)(KEY, images())), first, 0)
    others = [jax.device_get(compiled(case)(jax.random.key(i), images(i)))["plan"] for i in (1, 2, 3)]
    assert any(
        not np.array_equal(a, b)
        for other in others
        for a, b in zip(jax.tree.leaves(other), jax.tree.leaves(first["plan"]), strict=True)
    )
    assert TRACES[case.name] == traced


@EACH
def test_dtype_is_kept(case):
    def apply(key, x):
        return m.mix(case.policy(key, images()), x)

    for dtype in (jnp.bfloat16, jnp.float16, jnp.float32):
        shape = jax.ShapeDtypeStruct((B, SIZE, SIZE, 3), dtype)
        assert jax.eval_shape(apply, KEY, shape).dtype == dtype, dtype


def primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for value in jax.tree.leaves(equation.params, is_leaf=lambda v: hasattr(v, "eqns") or hasattr(v, "jaxpr")):
            inner = getattr(value, "jaxpr", value)
            if hasattr(inner, "eqns"):
                yield from primitives(inner)


def host_calls(function):
    used = set(primitives(jax.make_jaxpr(function)(KEY, images()).jaxpr))
    assert used
    return {name for name in used if any(word in name for word in ("callback", "infeed", "outfeed"))}


@EACH
def test_no_host_callback(case):
    assert not host_calls(lambda key, x: m.mix(case.policy(key, x), x))


def test_a_hidden_callback_would_be_found():
    def hidden(x):
        return jax.pure_callback(lambda v: v, x, x)

    assert host_calls(lambda key, x: jax.jit(lambda x: jax.lax.cond(x.sum() > 0, hidden, lambda x: x, x))(x))


def test_text_and_self_mixes_keep_the_promises_too():
    """spanmix mixes token ids, augmix returns images: the two that do not fit the list above."""
    ids = jax.random.randint(KEY, (B, 12), 0, 100)
    mesh = Mesh(np.array(jax.devices()), ("data",))
    seen = jax.random.uniform(KEY, ids.shape)
    policies = {"spanmix": m.spanmix, "ssmix": partial(m.ssmix, saliency=seen, share=0.3)}
    assert set(policies) == set(m.TEXT)
    for policy in policies.values():
        apply = jax.jit(lambda key, ids, policy=policy: m.mix(policy(key, ids), ids))
        np.testing.assert_array_equal(apply(KEY, ids), m.mix(policy(KEY, ids), ids))
        sharded = jax.device_put(ids, NamedSharding(mesh, PartitionSpec("data")))
        np.testing.assert_array_equal(apply(KEY, sharded), apply(KEY, ids))
        assert apply(KEY, ids).dtype == ids.dtype
        plan = policy(KEY, ids)
        np.testing.assert_allclose(plan.weight, plan.mask.mean(axis=(1, 2)), rtol=1e-6)
        np.testing.assert_array_equal(m.mix(m.gate(plan, jnp.bool_(False)), ids), ids)
        assert not host_calls(lambda key, x, policy=policy: m.mix(policy(key, ids), ids))
    assert not host_calls(m.augmix)
    augment = jax.jit(m.augmix, compiler_options=QUICK)
    np.testing.assert_array_equal(augment(KEY, images()), augment(KEY, images()))
    spread = jax.device_put(images(), NamedSharding(mesh, PartitionSpec("data")))
    np.testing.assert_allclose(augment(KEY, spread), augment(KEY, images()), atol=1e-6)


def mixed(case, key, x):
    plan = case.policy(key, x)
    return plan, m.mix(plan, x)


@pytest.mark.parametrize(
    "devices", [8, pytest.param(2, marks=pytest.mark.slow), pytest.param(4, marks=pytest.mark.slow)]
)
@EACH
def test_plan_is_independent_of_sharding(case, devices):
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    x = jax.device_put(images(), NamedSharding(mesh, PartitionSpec("data")))
    sharded = jax.device_get(jax.jit(partial(mixed, case), compiler_options=QUICK)(KEY, x))
    same(sharded, (result(case)["plan"], result(case)["mixed"]))


EAGER = [c for c in CASES if c.name in ("mixup", "cutmix", "fmix", "resizemix", "gridmix", "tokenmix", "adautomix")]


@pytest.mark.parametrize("case", EAGER, ids=lambda c: c.name)
def test_jit_equals_eager(case):
    eager = mixed(case, KEY, images())
    same(eager, jax.jit(partial(mixed, case))(KEY, images()))
    same(jax.device_get(eager), (result(case)["plan"], result(case)["mixed"]))


@pytest.mark.slow
@pytest.mark.parametrize("case", [c for c in CASES if c not in EAGER], ids=lambda c: c.name)
def test_jit_equals_eager_for_the_rest(case):
    test_jit_equals_eager(case)
