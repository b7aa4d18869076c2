"""Geodesic mixtures: what the method's own code gave, what they are at the ends, and what is refused."""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import objectives as o
from mixcon.errors import InputError
from mixcon.mixers import slerp
from mixcon.train.mesh import make_mesh
from mixcon.train.objective import pair_objective
from mixcon.train.optim import schedule

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "geodesic-mixup.npz"
NAMES = {"vmix": "image", "lmix": "text", "vlmix": "both", "mmmix": "m2"}  # the code's and ours
VARIANTS = ("clip", "vmix", "lmix", "vlmix", "m2mix", "m2mix_same_tau", "m3mix", "m3mix_origneg")
RTOL = 1e-5  # that code accumulates in float32


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def load(case: str) -> dict[str, Any]:
    with np.load(GOLDEN) as file:
        return {k.removeprefix(f"{case}/"): file[k] for k in file.files if k.startswith(f"{case}/")}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", ["c0", pytest.param("c1", marks=pytest.mark.slow)])
def test_golden(case: str) -> None:
    g = load(case)
    image, text = jnp.asarray(g["in/image_features"]), jnp.asarray(g["in/text_features"])
    lams = {NAMES[k]: float(g[f"in/lam_{v}"]) for k, v in zip(NAMES, ("v", "l", "vl", "m"), strict=True)}
    scale, m2_scale = 1 / float(g["in/tau"]), 1 / float(g["in/tau2"])

    def term(name: str, original: bool, scale: float) -> Any:
        if name == "clip":
            return lambda x, y: o.clip(x, y, logit_scale=scale)
        if name == "m2":
            return lambda x, y: o.m2mix(x, y, lams["m2"], logit_scale=scale)
        options: dict[str, Any] = {"mixed": name, "original_negatives": original}
        return lambda x, y: o.vlmix(x, y, lams[name], logit_scale=scale, **options)

    # The total is linear in its terms: each is differentiated once, and every variant put together from them.
    wanted = {("clip", False, scale), ("m2", False, scale), ("m2", False, m2_scale)}
    wanted |= {(name, original, scale) for name in ("image", "text", "both") for original in (False, True)}
    both = jax.jit(lambda x, y: {key: jax.value_and_grad(term(*key), argnums=(0, 1))(x, y) for key in wanted})
    found = both(image, text)
    factor = 1 / (int(g["in/epoch"]) + 1)
    for variant in VARIANTS:
        original, m2 = variant.endswith("origneg"), scale if variant == "m2mix_same_tau" else m2_scale
        parts = {k.rpartition("/")[2]: float(v) for k, v in g.items() if k.startswith(f"in/weight_{variant}/")}
        weights = {(NAMES[k], original and k != "mmmix", m2 if k == "mmmix" else scale): w for k, w in parts.items()}
        clip, clip_gradients = found["clip", False, scale]
        mix = sum(w * found[key][0] for key, w in weights.items())
        want = {k.removeprefix(f"out/{variant}/"): v for k, v in g.items() if k.startswith(f"out/{variant}/")}
        np.testing.assert_allclose(clip, want["clip_loss"], rtol=RTOL)
        np.testing.assert_allclose(mix, want["mix_loss"], rtol=RTOL, err_msg=variant)
        np.testing.assert_allclose(clip + factor * mix, want["total_loss"], rtol=RTOL, err_msg=variant)
        # That code takes the angle by arccos, ours by atan2, which near 0 and π keeps its digits. They are one function
        # on the sphere and not off it, so what is compared is the gradient along the sphere.
        for side, (x, expected) in enumerate(((image, want["grad_image"]), (text, want["grad_text"]))):
            gradient = clip_gradients[side] + factor * sum(w * found[key][1][side] for key, w in weights.items())
            limits = {"rtol": 1e-4, "atol": 1e-5 * np.abs(expected).max(), "err_msg": variant}
            np.testing.assert_allclose(along(gradient, x), along(expected, x), **limits)
    weights = {NAMES[k.rpartition("/")[2]]: float(v) for k, v in g.items() if k.startswith("in/weight_m3mix_origneg/")}
    settings: dict[str, Any] = {"logit_scale": scale, "m2_logit_scale": m2_scale, "factor": factor}
    loss, aux = o.m3mix(image, text, lams, weights=weights, original_negatives=True, has_aux=True, **settings)
    np.testing.assert_allclose(loss, g["out/m3mix_origneg/total_loss"], rtol=RTOL)
    np.testing.assert_allclose(aux["mix_loss"], g["out/m3mix_origneg/mix_loss"], rtol=RTOL)


def along(gradient: Any, unit: Any) -> np.ndarray:
    """What normalising passes on of a gradient."""
    gradient, unit = np.asarray(gradient), np.asarray(unit)
    return gradient - np.sum(gradient * unit, axis=1, keepdims=True) * unit


def test_golden_schedule() -> None:
    g = load("c2")
    steps, warm = int(g["in/steps"]), int(g["in/warmup"])
    rate = schedule(peak=float(g["in/base_lr"]), steps=steps, warmup_steps=warm, decay="cosine")
    got = [float(rate(step)) for step in range(steps)]
    np.testing.assert_allclose(got, g["out/lr"], rtol=1e-5, atol=1e-12)


def cones(seed: int, rows: int, dim: int, spread: float = 0.3) -> tuple[Any, Any]:
    """Two modalities in cones of their own, pairs near each other across the gap."""
    rng = np.random.default_rng(seed)
    shared = rng.normal(size=(rows, dim)) * spread
    both = []
    for axis in (0, 1):
        x = shared + 0.1 * rng.normal(size=(rows, dim)) + np.eye(dim)[axis]
        both.append(jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32))
    return both[0], both[1]


def test_mixed_points_are_unit_lie_on_the_geodesic_and_fill_the_gap() -> None:
    x, y = cones(0, 40, 6)
    mixed = slerp(x, y, 0.25)
    np.testing.assert_allclose(jnp.linalg.norm(mixed, axis=1), 1, rtol=1e-5)

    def angle(a: Any, b: Any) -> Any:
        return np.arccos(np.clip(np.sum(np.asarray(a, np.float64) * np.asarray(b, np.float64), 1), -1, 1))

    np.testing.assert_allclose(angle(x, mixed), 0.75 * angle(x, y), rtol=1e-3)
    np.testing.assert_allclose(angle(x, mixed) + angle(mixed, y), angle(x, y), rtol=1e-3)
    middle, ends = slerp(x, y, 0.5), (x.mean(0), y.mean(0))
    assert abs((middle @ ends[0]).mean() - (middle @ ends[1]).mean()) < 0.05, "as near to one centroid as to the other"
    assert (middle @ ends[1]).mean() > (x @ ends[1]).mean()


def test_m2_negatives_are_harder_where_the_modalities_are_apart() -> None:
    x, y = cones(1, 40, 6)
    _, aux = o.m2mix(x, y, 0.5, logit_scale=10.0, has_aux=True)
    assert aux["negative_cosine"] > aux["unmixed_negative_cosine"] + 0.1
    off = ~np.eye(40, dtype=bool)
    mixed = slerp(x, y, 0.5)
    want = (np.asarray(x @ mixed.T)[off].mean() + np.asarray(y @ mixed.T)[off].mean()) / 2
    np.testing.assert_allclose(aux["negative_cosine"], want, rtol=1e-5)
    np.testing.assert_allclose(aux["unmixed_negative_cosine"], np.asarray(x @ y.T)[off].mean(), rtol=1e-5)


def test_the_ends_are_one_modality_as_negatives() -> None:
    x, y = cones(2, 12, 5)
    m2mix = jax.jit(functools.partial(o.m2mix, logit_scale=7.0))
    own = 7 * np.sum(x * y, axis=1)
    for lam, negatives in ((1.0, x), (0.0, y)):
        total = 0.0
        for query in (x, y):
            logits = 7 * np.asarray(query @ negatives.T)
            np.fill_diagonal(logits, own)
            total += float((jax.nn.logsumexp(jnp.asarray(logits), axis=1) - own).mean())
        np.testing.assert_allclose(m2mix(x, y, lam), total, rtol=1e-5)
    clip = o.clip(x, y, logit_scale=7.0)
    np.testing.assert_allclose(o.vlmix(x, y, 1.0, logit_scale=7.0, mixed="image"), clip, rtol=1e-5)


def test_odd_batches_and_pairs_that_are_their_own_partner_are_finite() -> None:
    x, y = cones(3, 7, 5)
    for mixed, originals in (("text", (False,)), ("both", (False, True))):
        for original in originals:
            settings: dict[str, Any] = {"logit_scale": 9.0, "mixed": mixed, "original_negatives": original}
            vlmix = functools.partial(o.vlmix, lam=0.3, **settings)
            loss, gradients = jax.jit(jax.value_and_grad(vlmix, argnums=(0, 1)))(x, y)
            assert all(np.isfinite(v).all() for v in (loss, *gradients))
    alone = jnp.arange(7)
    for original in (False, True):
        got = o.vlmix(x, y, 0.3, logit_scale=9.0, mixed="image", partner=alone, original_negatives=original)
        np.testing.assert_allclose(got, o.clip(x, y, logit_scale=9.0), rtol=1e-5)


def test_half_precision_keeps_the_angle_of_near_pairs() -> None:
    x, _ = cones(4, 16, 8)
    near = x + 0.01 * jnp.roll(x, 1, axis=1)
    near = near / jnp.linalg.norm(near, axis=1, keepdims=True)
    wide = o.m2mix(x, near, 0.5, logit_scale=10.0)
    half = o.m2mix(x.astype(jnp.bfloat16), near.astype(jnp.bfloat16), 0.5, logit_scale=10.0)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, wide, rtol=2e-2)


def test_training_draws_a_share_a_term_and_fades() -> None:
    x, y = cones(5, 8, 5)
    key, alphas = jax.random.key(3), {"m2": 0.5, "image": 0.2, "text": 0.2, "both": 1.0}
    settings: dict[str, Any] = {"weights": dict.fromkeys(alphas, 0.1), "logit_scale": 100.0, "m2_logit_scale": 14.0}
    lams = o.sample_lams(key, alphas)
    assert len({float(v) for v in lams.values()}) == 4
    np.testing.assert_array_equal(o.sample_lams(key, {"m2": 0.5})["m2"], lams["m2"])
    drawn = functools.partial(o.geodesic_mixup, concentration=alphas, epoch=3, has_aux=True, **settings)
    got, aux = jax.jit(lambda x, y, key: drawn(x, y, key=key))(x, y, key)
    given = jax.jit(lambda x, y, lams: o.m3mix(x, y, lams, factor=0.25, **settings))
    np.testing.assert_allclose(got, given(x, y, lams), rtol=1e-5)
    np.testing.assert_allclose(got, aux["clip_loss"] + aux["mix_loss"] / 4, rtol=1e-6)
    draws = jax.jit(jax.vmap(lambda k: o.sample_lams(k, {"m2": 0.5})["m2"]))(jax.random.split(key, 4000))
    np.testing.assert_allclose([draws.mean(), draws.var()], [0.5, 1 / 8], atol=0.015)  # of Beta(½, ½)


def test_an_experiment_hands_on_key_and_epoch_to_losses_that_ask() -> None:
    x, y = cones(6, 8, 5)
    piece = {"weights": {"m2": 0.5}, "concentration": {"m2": 0.5}, "logit_scale": 20.0}
    loss = pair_objective({"name": "mixcon.objectives.geodesic_mixup", **piece}, num_examples=8)
    told: dict[str, Any] = {"index": jnp.arange(8), "epoch": 1, "key": jax.random.key(1)}
    value, _, _ = loss.apply({}, x, y, **told)
    np.testing.assert_allclose(value, o.geodesic_mixup(x, y, key=jax.random.key(1), epoch=1, **piece), rtol=1e-6)
    plain = pair_objective({"name": "mixcon.objectives.clip", "logit_scale": 20.0}, num_examples=8)
    np.testing.assert_allclose(plain.apply({}, x, y, **told)[0], o.clip(x, y, logit_scale=20.0), rtol=1e-6)


def test_the_reversed_batch_is_that_of_all_devices() -> None:
    x, y = cones(7, 8, 5)
    mesh = make_mesh(data=4, devices=jax.devices()[:4])
    rows = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(
        lambda x, y: o.vlmix(x, y, 0.3, logit_scale=9.0, original_negatives=True, axis_name="data"),
        mesh=mesh,
        in_specs=(rows, rows),
        out_specs=jax.sharding.PartitionSpec(),
    )
    want = o.vlmix(x, y, 0.3, logit_scale=9.0, original_negatives=True)
    np.testing.assert_allclose(jax.jit(mapped)(x, y), want, rtol=1e-5)


X, Y = cones(8, 4, 3)
BAD: dict[str, tuple[Any, str]] = {
    "share above one": (lambda: o.m2mix(X, Y, 1.2, logit_scale=9.0), "lam must lie in"),
    "shares of another batch": (lambda: o.m2mix(X, Y, jnp.ones(3), logit_scale=9.0), "lam must be a scalar"),
    "a single pair": (lambda: o.m2mix(X[:1], Y[:1], 0.5, logit_scale=9.0), "at least two"),
    "not unit": (lambda: o.m2mix(2 * X, Y, 0.5, logit_scale=9.0), "unit length"),
    "scale": (lambda: o.vlmix(X, Y, 0.5, logit_scale=-1.0), "logit_scale"),
    "kind": (lambda: o.vlmix(X, Y, 0.5, logit_scale=9.0, mixed="audio"), "mixed must be"),
    "partner": (lambda: o.vlmix(X, Y, 0.5, logit_scale=9.0, partner=jnp.zeros(4, int)), "permutation"),
    "partners of another batch": (lambda: o.vlmix(X, Y, 0.5, logit_scale=9.0, partner=jnp.arange(3)), "partner must"),
    "unknown term": (lambda: o.m3mix(X, Y, {}, weights={"m3": 1.0}, logit_scale=9.0), "no mixture 'm3'"),
    "negative weight": (lambda: o.m3mix(X, Y, {"m2": 0.5}, weights={"m2": -1.0}, logit_scale=9.0), "not negative"),
    "weight without a share": (lambda: o.m3mix(X, Y, {}, weights={"m2": 1.0}, logit_scale=9.0), "not negative"),
    "no concentration": (
        lambda: o.geodesic_mixup(X, Y, key=jax.random.key(0), logit_scale=9.0, weights={"m2": 1.0}, concentration={}),
        "has a weight and no",
    ),
    "concentration": (lambda: o.sample_lams(jax.random.key(0), {"m2": 0.0}), "concentration of 'm2'"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_words(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises(InputError, match=message):
        call()
