"""CWCL: the recorded vectors, what it becomes for special weights, its floor, and what it refuses."""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import objectives as o
from mixcon.errors import InputError
from mixcon.ops import pairs

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "cwcl.npz"


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def units(seed: int, rows: int, dim: int, count: int = 2) -> list[Any]:
    x = np.random.default_rng(seed).normal(size=(count, rows, dim))
    return list(jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32))


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("impl", ["dense", "tiled"])
@pytest.mark.parametrize("case", ["c0", "c1", "c2"])
def test_golden(case: str, impl: Any) -> None:
    with np.load(GOLDEN) as file:
        arrays = {k.removeprefix(f"{case}/"): file[k] for k in file.files if k.startswith(f"{case}/")}
    p, q, labels = (jnp.asarray(arrays[f"in/{name}"]) for name in ("trainable", "frozen", "labels"))
    settings: dict[str, Any] = {"logit_scale": 1 / float(arrays["in/temperature"]), "normalize": True, "impl": impl}

    def plain(x: Any) -> Any:
        return o.info_nce(q, x, temperature=float(arrays["in/temperature"]), normalize=True)

    def total(x: Any, **kind: Any) -> Any:
        return o.cwcl(x, q, **kind, **settings)

    np.testing.assert_allclose(plain(p), arrays["out/loss_frozen_to_trainable"], rtol=1e-9)
    np.testing.assert_allclose(jax.grad(plain)(p), arrays["out/grad_frozen_to_trainable"], rtol=1e-7, atol=1e-10)
    np.testing.assert_allclose(total(p), arrays["out/total_affine"], rtol=1e-9)
    for kind in ("affine", "identity", "labels"):
        options = {"weights": kind} | ({"labels": labels} if kind == "labels" else {})
        value, gradient = jax.value_and_grad(lambda x, options=options: total(x, **options) - plain(x))(p)
        np.testing.assert_allclose(value, arrays[f"out/{kind}/loss_trainable_to_frozen"], rtol=1e-9)
        np.testing.assert_allclose(gradient, arrays[f"out/{kind}/grad_trainable"], rtol=1e-7, atol=1e-9)
        _, aux = o.cwcl(p, q, **options, **settings, has_aux=True)
        np.testing.assert_allclose(aux["loss_weighted"], value, rtol=1e-9)
        rows = arrays[f"out/{kind}/weights"] / arrays[f"out/{kind}/weights"].sum(1, keepdims=True)
        entropy = -np.sum(np.where(rows > 0, rows * np.log(np.where(rows > 0, rows, 1)), 0), axis=1)
        np.testing.assert_allclose(aux["target_entropy"], entropy.mean(), rtol=1e-9, atol=1e-12)
        np.testing.assert_allclose(aux["effective_positives"], np.exp(entropy).mean(), rtol=1e-9)


def test_identity_weights_are_clip_and_label_weights_are_supervised_contrast() -> None:
    p, q = units(0, 24, 8)
    labels = jnp.asarray(np.random.default_rng(1).integers(0, 4, 24))
    lit = o.cwcl(p, q, logit_scale=10.0, weights="identity")
    np.testing.assert_allclose(lit, 2 * o.clip(p, q, logit_scale=10.0), rtol=1e-6)
    np.testing.assert_allclose(o.cwcl(p, q, logit_scale=10.0, weights=pairs.identity(), reduction="mean"), lit / 2)
    supervised = o.multi_positive(p, q, pairs.same_label(labels), temperature=0.1)
    back = o.info_nce(q, p, temperature=0.1)
    got = o.cwcl(p, q, logit_scale=10.0, weights="labels", labels=labels)
    np.testing.assert_allclose(got, supervised + back, rtol=1e-6)


def test_either_side_may_be_the_frozen_one() -> None:
    p, q = units(2, 9, 5)
    one = o.cwcl(p, q, logit_scale=5.0, logit_bias=-3.0)
    np.testing.assert_allclose(o.cwcl(q, p, logit_scale=5.0, frozen="first"), one, rtol=1e-6)


def test_its_floor_is_the_entropy_of_the_weights() -> None:
    """Free logits that solve softmax = target reach it; nearly orthogonal examples put it just below log N."""
    (r,) = units(3, 16, 400, count=1)
    weights = np.asarray((1 + r @ r.T) / 2, np.float64)
    logits = np.log(weights / weights.sum(1, keepdims=True))
    scale = 1 + np.linalg.norm(logits, axis=1).max()
    rest = np.sqrt(scale**2 - np.square(logits).sum(1, keepdims=True))  # a dimension more makes the rows unit
    p = jnp.asarray(np.concatenate([logits, rest], 1) / scale, jnp.float32)
    _, aux = o.cwcl(p, jnp.eye(16, 17), reference=r, logit_scale=scale, has_aux=True)
    np.testing.assert_allclose(aux["loss_weighted"], aux["target_entropy"], rtol=1e-6)
    assert np.log(16) - 0.05 < aux["target_entropy"] < np.log(16)
    (other,) = units(4, 16, 17, count=1)
    assert o.cwcl(other, jnp.eye(16, 17), reference=r, logit_scale=scale, has_aux=True)[1]["loss_weighted"] > 2.8


def test_equal_frozen_embeddings_pull_every_anchor_to_uniform_logits() -> None:
    p, _ = units(4, 12, 6)
    same = jnp.broadcast_to(p[0], p.shape)
    _, aux = o.cwcl(p, same, logit_scale=20.0, has_aux=True)
    np.testing.assert_allclose([aux["target_entropy"], aux["loss_weighted"]], np.log(12), rtol=1e-5)


def test_weights_may_be_a_matrix() -> None:
    p, q = units(9, 8, 5)
    weights = np.random.default_rng(0).uniform(size=(8, 8)).astype(np.float32)
    share = weights / weights.sum(1, keepdims=True)
    scores = 7.0 * np.asarray(p @ q.T)
    rows, cols = (each - np.log(np.exp(each).sum(1, keepdims=True)) for each in (scores, scores.T))
    wanted = -(share * rows).sum(1).mean() - np.diag(cols).mean()
    for given in (weights, jnp.asarray(weights), weights.tolist()):
        np.testing.assert_allclose(o.cwcl(p, q, logit_scale=7.0, weights=given), wanted, rtol=1e-5)
    jitted = jax.jit(lambda weights: o.cwcl(p, q, logit_scale=7.0, weights=weights, has_aux=True))(weights)
    np.testing.assert_allclose(jitted[0], wanted, rtol=1e-5)


def test_a_single_pair_costs_nothing_and_moves_nothing() -> None:
    p, q = units(5, 1, 6)
    loss, gradients = jax.value_and_grad(lambda p, q: o.cwcl(p, q, logit_scale=14.0), argnums=(0, 1))(p, q)
    assert abs(loss) < 1e-6
    assert max(float(jnp.abs(g).max()) for g in gradients) < 1e-5


def test_no_gradient_through_the_weights_nor_the_reference() -> None:
    p, q, r = units(6, 10, 4, count=3)
    for kind in ("affine", "relu", "exp"):
        gradient = jax.grad(lambda r, kind=kind: o.cwcl(p, q, reference=r, logit_scale=5.0, weights=kind))(r)
        assert not np.asarray(gradient).any()


def test_opposite_embeddings_have_no_weight_and_half_precision_keeps_unrelated_ones_apart() -> None:
    two = jnp.asarray([[1.0, 0.0], [-1.0, 0.0]])
    identity = o.cwcl(two, two, logit_scale=3.0, weights="identity")
    np.testing.assert_allclose(o.cwcl(two, two, logit_scale=3.0), identity, rtol=1e-6)
    p, q = units(7, 64, 32)
    wide = o.cwcl(p, q, logit_scale=20.0)
    half = o.cwcl(p.astype(jnp.bfloat16), q.astype(jnp.bfloat16), logit_scale=20.0)
    assert half.dtype == jnp.float32
    np.testing.assert_allclose(half, wide, rtol=2e-3)


P, Q = units(8, 4, 3)
BAD: dict[str, tuple[dict[str, Any], str]] = {
    "kind": ({"weights": "afine"}, "weights='afine' is unknown"),
    "scale": ({"logit_scale": 0.0}, "logit_scale"),
    "labels missing": ({"weights": "labels"}, "labels belong to"),
    "labels unused": ({"labels": jnp.arange(4)}, "labels belong to"),
    "labels of another batch": ({"weights": "labels", "labels": jnp.arange(3)}, "one for each pair"),
    "reference of another batch": ({"reference": Q[:3]}, "a row for each pair"),
    "reference unused": ({"reference": Q, "weights": "identity"}, "a reference to"),
    "reference not finite": ({"reference": Q.at[0].set(jnp.nan)}, "reference must be finite"),
    "a matrix of another batch": ({"weights": np.ones((4, 3))}, "matrix"),
    "a matrix not finite": ({"weights": np.full((4, 4), np.nan)}, "weights must be finite"),
    "negative weights": ({"weights": lambda: pairs.dense(-jnp.ones((4, 4)))}, "not negative"),
    "weights that vanish": ({"weights": lambda: pairs.dense(jnp.zeros((4, 4)))}, "4 of 4 rows sum to less"),
    "temperature": ({"weights": "exp", "weight_temperature": 0.0}, "weight_temperature"),
    "frozen": ({"frozen": "third"}, "frozen"),
    "reduction": ({"reduction": "max"}, "reduction"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_words(name: str) -> None:
    options, message = BAD[name]
    with pytest.raises(InputError, match=message):
        o.cwcl(
            P, Q, **{"logit_scale": 5.0} | {k: v() if k == "weights" and callable(v) else v for k, v in options.items()}
        )


def test_rows_that_are_not_unit_and_shapes_that_differ_are_refused() -> None:
    with pytest.raises(InputError, match="unit length"):
        o.cwcl(2 * P, Q, logit_scale=5.0)
    with pytest.raises(InputError, match="one shape"):
        o.cwcl(P[:3], Q, logit_scale=5.0)
