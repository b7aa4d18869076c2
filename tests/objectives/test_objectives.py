"""What single objectives promise beyond the battery: reductions to each other, metrics, mining, queues, refusals."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from mixcon import objectives as o
from mixcon.errors import InputError
from mixcon.ops import pairs
from mixcon.train.mesh import make_mesh

B, D = 8, 4


def unit(seed: int, size: int = B, dim: int = D) -> jax.Array:
    x = np.random.default_rng(seed).normal(size=(size, dim))
    return jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32)


X, Y = unit(0), unit(1)
LABELS = jnp.asarray([0, 0, 1, 1, 2, 2, 2, 3], jnp.int32)


# --- soft targets reduce to hard ones --------------------------------------------------------------------------------


def test_one_hot_targets_are_info_nce() -> None:
    want = o.info_nce(X, Y, temperature=0.2)
    for target in (np.eye(B), pairs.identity(), pairs.mixed(jnp.roll(jnp.arange(B), 1), jnp.ones(B))):
        np.testing.assert_allclose(o.multi_positive(X, Y, target, temperature=0.2), want, rtol=1e-6)


def test_info_nce_and_clip_are_one() -> None:
    want = o.clip(X, Y, logit_scale=5.0)
    np.testing.assert_allclose(o.info_nce(X, Y, temperature=0.2, symmetric=True), want, rtol=1e-6)
    np.testing.assert_allclose(o.clip(X, Y, logit_scale=5.0, reduction="sum"), 2 * want, rtol=1e-6)
    np.testing.assert_allclose(o.clip(X, Y, logit_scale=5.0, logit_bias=3.0), want, rtol=1e-5)


def test_label_smoothing_is_a_soft_target() -> None:
    target = 0.9 * np.eye(B) + 0.1 / B
    want = o.multi_positive(X, Y, target, temperature=0.2, symmetric=True)
    np.testing.assert_allclose(o.clip(X, Y, logit_scale=5.0, label_smoothing=0.1), want, rtol=1e-6)


def test_two_views_of_distinct_classes_make_supcon_nt_xent() -> None:
    views, labels = jnp.stack([X, Y], 1), jnp.arange(B)
    want = o.nt_xent(X, Y, temperature=0.2)
    for form in ("out", "in"):
        np.testing.assert_allclose(o.supcon(views, labels, temperature=0.2, form=form), want, rtol=1e-6)
    scaled = o.supcon(views, labels, temperature=0.2, base_temperature=0.1)
    np.testing.assert_allclose(scaled, 2 * want, rtol=1e-6)


def test_no_correction_makes_debiased_nt_xent() -> None:
    want = o.nt_xent(X, Y, temperature=0.2)
    np.testing.assert_allclose(o.debiased(X, Y, temperature=0.2, class_prior=0.0), want, rtol=1e-5)
    unweighted = o.hard_negative_reweighted(X, Y, temperature=0.2, hardness=0.0, class_prior=0.1)
    np.testing.assert_allclose(unweighted, o.debiased(X, Y, temperature=0.2, class_prior=0.1), rtol=1e-5)


def test_wide_weights_make_dclw_dcl() -> None:
    want = o.decoupled(X, Y, temperature=0.2)
    np.testing.assert_allclose(o.decoupled(X, Y, temperature=0.2, weight_sigma=1e6), want, rtol=1e-4)


def test_normalized_proxy_nca_is_softmax_cross_entropy() -> None:
    proxies = unit(2, 4)
    log_softmax = jax.nn.log_softmax(2 * 3.0 * X @ proxies.T)
    want = -log_softmax[jnp.arange(B), LABELS].mean()
    got = o.proxy_nca(X, LABELS, proxies, scale=3.0, include_positive=True)
    np.testing.assert_allclose(got, want, rtol=1e-5)


# --- metrics ---------------------------------------------------------------------------------------------------------


def test_clip_metrics() -> None:
    sim = np.asarray(X) @ np.asarray(Y).T
    loss, aux = o.clip(X, Y, logit_scale=5.0, has_aux=True)
    np.testing.assert_allclose(loss, (aux["loss_image_to_text"] + aux["loss_text_to_image"]) / 2, rtol=1e-6)
    np.testing.assert_allclose(aux["accuracy_image_to_text"], (sim.argmax(1) == np.arange(B)).mean())
    np.testing.assert_allclose(aux["accuracy_text_to_image"], (sim.argmax(0) == np.arange(B)).mean())
    np.testing.assert_allclose(aux["positive_logit"], 5 * np.diag(sim).mean(), rtol=1e-4)
    np.testing.assert_allclose(aux["negative_logit"], 5 * sim[~np.eye(B, dtype=bool)].mean(), rtol=1e-4)


def test_a_collapsed_batch_has_no_accuracy() -> None:
    same = jnp.broadcast_to(X[0], X.shape)
    _, aux = o.clip(same, same, logit_scale=5.0, has_aux=True)
    assert aux["accuracy_image_to_text"] == aux["accuracy_text_to_image"] == 0


def test_siglip_halves_and_one_pair() -> None:
    loss, aux = o.siglip(X, Y, logit_scale=5.0, logit_bias=-2.0, has_aux=True)
    np.testing.assert_allclose(aux["loss_positive"] + aux["loss_negative"], loss, rtol=1e-6)
    z = 5.0 * float(X[0] @ Y[0]) - 2.0
    np.testing.assert_allclose(
        o.siglip(X[:1], Y[:1], logit_scale=5.0, logit_bias=-2.0), np.log1p(np.exp(-z)), rtol=1e-5
    )
    assert o.clip(X[:1], Y[:1], logit_scale=5.0) == 0


def test_anchors_without_positive_are_skipped_and_counted() -> None:
    loss, aux = o.supcon(X, LABELS, temperature=0.2, has_aux=True)
    assert aux["without_positive"] == 1
    kept = LABELS != 3  # the lonely sample stays in the denominators
    sim = np.asarray(X @ X.T) / 0.2
    losses = []
    for i in np.flatnonzero(kept):
        others = [j for j in range(B) if j != i]
        r = np.log(np.exp(sim[i, others]).sum())
        losses.append(np.mean([r - sim[i, j] for j in others if LABELS[j] == LABELS[i]]))
    np.testing.assert_allclose(loss, np.mean(losses), rtol=1e-5)
    with pytest.raises(InputError, match="positives: 1 of the queries have none"):
        o.supcon(X, LABELS, temperature=0.2, empty="error")


def test_a_batch_without_any_positive_is_zero_with_zero_gradient() -> None:
    loss, gradient = jax.value_and_grad(lambda x: o.supcon(x, jnp.arange(B), temperature=0.2))(X)
    assert loss == 0
    assert not gradient.any()


def test_a_single_class_has_no_negatives() -> None:
    labels = jnp.zeros(B, jnp.int32)
    for function in (o.multi_similarity, o.circle, o.triplet, o.contrastive):
        loss, gradient = jax.value_and_grad(lambda x, f=function: f(x, labels))(X)
        assert np.isfinite(loss)
        assert np.isfinite(gradient).all()
    assert o.triplet(X, labels, mining="semi_hard") == o.triplet(X, labels, mining="all") == 0


# --- normalisation and precision -------------------------------------------------------------------------------------


def test_normalize_divides_by_the_norm_and_survives_zero_rows() -> None:
    raw = X * jnp.linspace(0.5, 2, B)[:, None]
    np.testing.assert_allclose(
        o.clip(raw, Y, logit_scale=5.0, normalize=True), o.clip(X, Y, logit_scale=5.0), rtol=1e-5
    )
    zero = raw.at[2].set(0)
    loss, gradient = jax.value_and_grad(lambda x: o.clip(x, Y, logit_scale=5.0, normalize=True))(zero)
    assert np.isfinite(loss)
    assert np.isfinite(gradient).all()


def test_bfloat16_features_give_float32_losses() -> None:
    half = X.astype(jnp.bfloat16), Y.astype(jnp.bfloat16)
    scale = jnp.float32(20.0)
    loss, gradient = jax.value_and_grad(lambda x: o.clip(x, half[1], logit_scale=scale))(half[0])
    assert loss.dtype == jnp.float32
    assert gradient.dtype == jnp.bfloat16
    same_values = o.clip(half[0].astype(jnp.float32), half[1].astype(jnp.float32), logit_scale=scale)
    np.testing.assert_allclose(loss, same_values, rtol=1e-5)


# --- the memory ------------------------------------------------------------------------------------------------------


def test_the_queue_wraps_and_knows_how_full_it_is() -> None:
    queue = o.empty_queue(5, 1)
    assert not queue.valid.any()
    for step in range(3):
        queue = o.push(queue, jnp.full((2, 1), float(step)), jnp.full(2, step))
    np.testing.assert_array_equal(queue.features[:, 0], [2, 0, 1, 1, 2])
    np.testing.assert_array_equal(queue.labels, [2, 0, 1, 1, 2])
    assert (int(queue.cursor), int(queue.filled)) == (1, 5)
    assert queue.valid.all()


def test_an_empty_memory_is_supcon() -> None:
    memory = o.cross_batch_memory(16, D, temperature=0.2)
    loss, aux, state = memory.apply(memory.init(), X, LABELS)
    np.testing.assert_allclose(loss, o.supcon(X, LABELS, temperature=0.2), rtol=1e-6)
    assert aux["filled"] == 0
    assert int(state.filled) == B


def test_the_memory_survives_a_checkpoint(tmp_path: Any) -> None:
    memory = o.cross_batch_memory(16, D, temperature=0.2)
    apply = jax.jit(memory.apply)
    _, _, state = apply(memory.init(), X, LABELS)
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save(tmp_path / "state", state)
        checkpointer.wait_until_finished()
        restored = checkpointer.restore(tmp_path / "state", jax.eval_shape(memory.init))
    want, got = apply(state, Y, LABELS), apply(restored, Y, LABELS)
    jax.tree.map(np.testing.assert_array_equal, got, want)


@pytest.mark.parametrize("checked", [True, False])
def test_the_memory_is_the_same_on_every_device(checked: bool) -> None:
    rows, everywhere = jax.sharding.PartitionSpec("data"), jax.sharding.PartitionSpec()
    memory = o.cross_batch_memory(16, D, temperature=0.2, axis_name="data")
    mapped = jax.shard_map(
        memory.apply,
        mesh=make_mesh(data=4, devices=jax.devices()[:4]),
        in_specs=(everywhere, rows, rows),
        out_specs=everywhere,
        check_vma=checked,
    )
    whole = o.cross_batch_memory(16, D, temperature=0.2).apply
    state, want = memory.init(), memory.init()
    for features in (X, Y):
        loss, aux, state = jax.jit(mapped)(state, features, LABELS)
        want_loss, want_aux, want = whole(want, features, LABELS)
        np.testing.assert_allclose(loss, want_loss, rtol=1e-5)
        np.testing.assert_allclose(aux["probability"], want_aux["probability"], rtol=1e-5)
    jax.tree.map(np.testing.assert_array_equal, state, want)


# --- bad input -------------------------------------------------------------------------------------------------------

BAD = {
    "image and text are pairs": lambda: o.clip(X, Y[:-1], logit_scale=1.0),
    "have one shape": lambda: o.siglip(X, Y[:, :-1], logit_scale=1.0, logit_bias=0.0),
    r"image must be \[B, D\]": lambda: o.clip(X[None], Y[None], logit_scale=1.0),
    "image must have rows of unit length.*normalize=True": lambda: o.clip(2 * X, Y, logit_scale=1.0),
    "logit_scale must be finite and above zero": lambda: o.clip(X, Y, logit_scale=-1.0),
    "logit_scale must be finite": lambda: o.siglip(X, Y, logit_scale=np.nan, logit_bias=0.0),
    r"label_smoothing must be in \[0, 1\)": lambda: o.clip(X, Y, logit_scale=1.0, label_smoothing=1.0),
    'reduction must be "mean" or "sum"': lambda: o.clip(X, Y, logit_scale=1.0, reduction="none"),
    "temperature must be finite and above zero": lambda: o.nt_xent(X, Y, temperature=0.0),
    "bank holds negatives of the queries only": lambda: o.info_nce(X, Y, temperature=1.0, bank=X, symmetric=True),
    "hold one example": lambda: o.decoupled(X[:1], Y[:1], temperature=1.0),
    "weight_sigma must be finite": lambda: o.decoupled(X, Y, temperature=1.0, weight_sigma=0.0),
    r"class_prior must be in \[0, 1\)": lambda: o.debiased(X, Y, temperature=1.0, class_prior=1.0),
    "hardness must be finite and not negative": lambda: o.hard_negative_reweighted(
        X, Y, temperature=1.0, hardness=-1.0
    ),
    "labels must have one class for each of the 8 samples": lambda: o.supcon(X, LABELS[:-1], temperature=1.0),
    "labels must have one class": lambda: o.triplet(X, jnp.eye(B)),
    r"positives must be \[B, N\] = \(8, 8\)": lambda: o.multi_positive(X, Y, np.ones((8, 7)), temperature=1.0),
    "positives must be finite and not negative": lambda: o.multi_positive(X, Y, -np.eye(8), temperature=1.0),
    "positives must be finite": lambda: o.multi_positive(X, Y, np.full((8, 8), np.inf), temperature=1.0),
    "queries have D = 4 but keys have D = 3": lambda: o.multi_positive(X, unit(3, B, 3), np.eye(8), temperature=1.0),
    "hard_negatives must be": lambda: o.multiple_negatives_ranking(X, Y, X[:4]),
    "hard_negatives belong to the anchors": lambda: o.multiple_negatives_ranking(X, Y, X, symmetric=True),
    "margin must be finite and above zero": lambda: o.contrastive(X, LABELS, margin=0.0),
    "power must be 1 or 2": lambda: o.contrastive(X, LABELS, power=3),
    "mining must be hard, semi_hard or all": lambda: o.triplet(X, LABELS, mining="easy"),
    "distance must be": lambda: o.triplet(X, LABELS, distance="manhattan"),
    r"labels must be in \[0, 3\)": lambda: o.proxy_nca(X, LABELS, unit(2, 3)),
    "proxies hold one class": lambda: o.proxy_anchor(X, 0 * LABELS, unit(2, 1)),
    "first has a single row": lambda: o.uniformity(X[:1]),
    "t must be finite and above zero": lambda: o.uniformity(X, t=-2.0),
    "a variance needs two": lambda: o.vicreg(X[:1], Y[:1]),
    "do not fit the queue": lambda: o.push(o.empty_queue(4, D), X),
    "size and dim of a queue": lambda: o.cross_batch_memory(0, D).init(),
}


@pytest.mark.parametrize("message", BAD)
def test_bad_input_is_refused_in_words(message: str) -> None:
    with pytest.raises(InputError, match=message):
        BAD[message]()
