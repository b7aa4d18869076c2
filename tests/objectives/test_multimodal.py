"""M3Co and soft CLIP: the published code's values and gradients, where they meet other losses, what they refuse."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import mixers
from mixcon import objectives as o
from mixcon.errors import InputError

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "m3col.npz"


@pytest.fixture
def double():
    with jax.enable_x64(True):
        yield


def load(case):
    with np.load(GOLDEN) as file:
        return {k.removeprefix(f"{case}/"): file[k] for k in file.files if k.startswith(f"{case}/") and "kind" not in k}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_m3co_is_the_published_one(impl):
    x = load("c1")

    def loss(mixed, partner, fixed_point):
        perm, lam, temperature = x["in/perm"], x["in/betas"], float(x["in/temperature"])
        return o.m3co(mixed, partner, perm, lam, temperature=temperature, fixed_point=fixed_point, impl=impl)

    arguments = [jnp.asarray(x[f"in/{k}"]) for k in ("mixed", "fixed")]
    got, grads = jax.value_and_grad(loss, (0, 1))(*arguments, "accumulate")
    np.testing.assert_allclose(got, x["out/loss"], rtol=1e-9)
    np.testing.assert_allclose(grads[0], x["out/grad_mixed"], rtol=1e-7, atol=1e-11)
    np.testing.assert_allclose(grads[1], x["out/grad_fixed"], rtol=1e-7, atol=1e-11)
    np.testing.assert_allclose(loss(*arguments, "overwrite"), x["out/loss"], rtol=1e-9)  # perm has no fixed point


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_soft_clip_is_the_published_one(impl):
    x = load("c2")
    arguments = [jnp.asarray(x[f"in/{k}"]) for k in ("preds", "targs")]

    def loss(pred, target, detach_targets):
        temperature = float(x["in/temperature"])
        return o.soft_clip(pred, target, temperature=temperature, detach_targets=detach_targets, impl=impl)

    got, grads = jax.value_and_grad(loss, (0, 1))(*arguments, False)
    np.testing.assert_allclose(got, x["out/loss"], rtol=1e-9)
    np.testing.assert_allclose(grads[0], x["out/grad_preds"], rtol=1e-7, atol=1e-11)
    np.testing.assert_allclose(grads[1], x["out/grad_targs"], rtol=1e-7, atol=1e-11)

    def detached(pred, target):
        p, q = o.l2_normalize(pred), o.l2_normalize(target)
        weight = jax.lax.stop_gradient(jax.nn.softmax(q @ q.T / 0.125, axis=1))
        both = [jax.nn.log_softmax(s / 0.125, axis=1) for s in (p @ q.T, q @ p.T)]
        return -(weight * (both[0] + both[1])).sum() / (2 * len(p))

    want, want_grads = jax.value_and_grad(detached, (0, 1))(*arguments)
    got, grads = jax.value_and_grad(loss, (0, 1))(*arguments, True)
    np.testing.assert_allclose(got, want, rtol=1e-9)
    np.testing.assert_allclose(grads, want_grads, rtol=1e-7, atol=1e-11)
    assert np.abs(grads[1] - x["out/grad_targs"]).max() > 1e-3


@pytest.fixture
def rows():
    return [jnp.asarray(x, jnp.float32) for x in np.random.default_rng(0).normal(size=(2, 6, 4))]


def test_unmixed_m3co_is_info_nce_of_pairs(rows):
    """Whatever the partners: with every λ = 1 the target is the identity, fixed points included."""
    perm = jnp.array([0, 2, 1, 3, 5, 4])
    got = o.m3co(*rows, perm, jnp.ones(6), temperature=0.2)
    want = o.info_nce(*rows, temperature=0.2, symmetric=True, normalize=True)
    np.testing.assert_allclose(got, want, rtol=1e-6)
    one_way = o.m3co(*rows, perm, jnp.ones(6), temperature=0.2, bidirectional=False)
    np.testing.assert_allclose(one_way, o.info_nce(*rows, temperature=0.2, normalize=True), rtol=1e-6)


def test_fixed_points_that_are_overwritten_lose_their_first_part(rows):
    """perm(0) = 0 with λ = 1: the published target of that row is 0 instead of 1."""
    perm, lam = jnp.array([0, 2, 1, 4, 5, 3]), jnp.array([1.0, 0.3, 1.0, 0.6, 0.0, 1.0])
    full = o.m3co(*rows, perm, lam, fixed_point="accumulate")
    less = o.m3co(*rows, perm, lam, fixed_point="overwrite")
    a, b = (np.asarray(o.l2_normalize(x), np.float64) for x in rows)
    logits = a @ b.T / 0.1
    missing = sum(np.log(np.exp(s[0]).sum()) - s[0, 0] for s in (logits, logits.T)) / (2 * 6)
    np.testing.assert_allclose(full - less, missing, rtol=1e-5)


def test_rows_of_zeros_have_a_finite_gradient(rows):
    first, second = (x.at[0].set(0.0) for x in rows)
    perm, lam = jnp.array([1, 0, 2, 4, 5, 3]), jnp.linspace(0, 1, 6)
    for loss in (lambda a, b: o.m3co(a, b, perm, lam), o.soft_clip):
        value, grads = jax.value_and_grad(loss, (0, 1))(first, second)
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in grads)


def test_pairs_of_modalities():
    assert o.multimodal_pairs(2) == [(0, 1), (1, 0)]
    assert o.multimodal_pairs(4) == [(0, 1), (1, 2), (2, 3), (3, 0)]
    with pytest.raises(InputError, match="at least two modalities"):
        o.multimodal_pairs(1)


@pytest.mark.parametrize(
    ("changed", "sentence"),
    [
        ({"mixed": jnp.ones((5, 4))}, "one shape"),
        ({"mixed": jnp.ones((1, 4)), "partner": jnp.ones((1, 4))}, "at least two"),
        ({"perm": jnp.array([0, 0, 1, 2, 3, 4])}, "permutation of 0 .. 5"),
        ({"perm": jnp.arange(5)}, r"both be \[6\]"),
        ({"lam": jnp.full(6, 1.5)}, r"lam must lie in \[0, 1\]"),
        ({"temperature": 0.0}, "temperature must be finite and above zero"),
        ({"fixed_point": "both"}, "fixed_point must be"),
    ],
)
def test_m3co_refuses(rows, changed, sentence):
    given = {"mixed": rows[0], "partner": rows[1], "perm": jnp.arange(6), "lam": jnp.ones(6)} | changed
    with pytest.raises(InputError, match=sentence):
        o.m3co(given.pop("mixed"), given.pop("partner"), given.pop("perm"), given.pop("lam"), **given)


def test_soft_clip_refuses(rows):
    with pytest.raises(InputError, match="one shape"):
        o.soft_clip(rows[0], rows[1][:4])
    with pytest.raises(InputError, match="temperature"):
        o.soft_clip(*rows, temperature=-1.0)


def sphere(rows):
    return o.l2_normalize(rows[0]), o.l2_normalize(rows[1])


def test_mixed_clip_is_the_sum_of_its_parts(rows):
    x, y = sphere(rows)
    key, settings = jax.random.key(3), {"logit_scale": 7.0, "temperature": 0.2, "soft_temperature": 0.3}
    settings |= {"contrast": 0.7, "weight": 0.4, "switch": 2, "alpha": 1.0, "select": 0.8}

    @jax.jit
    def loss(epoch):
        return o.mixed_clip(x, y, key=key, epoch=epoch, **settings)

    plans = [mixers.mixco(k, x, alpha=1.0, select=0.8) for k in jax.random.split(key)]
    mixed = [
        o.m3co(mixers.mix(plan, own), other, plan.partner, plan.weight, temperature=0.2)
        for plan, own, other in zip(plans, (x, y), (y, x), strict=True)
    ]
    settled = [o.soft_clip(a, b, temperature=0.3) for a, b in ((x, y), (y, x))]
    alone = 0.7 * o.clip(x, y, logit_scale=7.0)
    for epoch, terms in ((0, mixed), (1, mixed), (2, settled)):
        np.testing.assert_allclose(loss(epoch), alone + 0.4 * sum(terms), rtol=1e-5)
    only = o.mixed_clip(x, y, key=key, **settings | {"contrast": 0.0}, form="soft_clip")
    np.testing.assert_allclose(only, 0.4 * sum(settled), rtol=1e-5)


def test_mixed_clip_is_the_same_on_several_devices(rows):
    x, y = sphere(rows)

    def loss(x, y, axis_name=None):
        return o.mixed_clip(x, y, key=jax.random.key(3), logit_scale=7.0, form="m3co", weight=1.0, axis_name=axis_name)

    mesh = jax.make_mesh((2,), ("data",), axis_types=(jax.sharding.AxisType.Auto,), devices=jax.devices()[:2])
    split, whole = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    mapped = jax.shard_map(lambda x, y: loss(x, y, "data"), mesh=mesh, in_specs=(split, split), out_specs=whole)
    got, want = (jax.jit(jax.value_and_grad(function, (0, 1)))(x, y) for function in (mapped, loss))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6), got, want)


@pytest.mark.parametrize("wrong", [{"form": "clip"}, {"weight": -1.0}, {"temperature": 0.0}, {"alpha": 0.0}])
def test_mixed_clip_refuses_settings_that_are_none(rows, wrong):
    with pytest.raises(InputError, match=next(iter(wrong))):
        o.mixed_clip(*sphere(rows), key=jax.random.key(0), logit_scale=7.0, **wrong)
