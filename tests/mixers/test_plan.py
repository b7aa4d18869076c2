"""The plan's algebra, against the mixing matrix written out."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import mixers as m
from mixcon.mixers.frequency import brightest

KEY = jax.random.key(3)
B = 6


def matrix(plan):
    """M, by loops."""
    index, weight = (np.asarray(v) for v in m.sources(plan))
    out = np.zeros((len(index), len(index)))
    for i in range(len(index)):
        for j, w in zip(index[i], weight[i], strict=True):
            out[i, j] += w
    return out


PLANS = {
    "two sources": m.mixup(KEY, jnp.zeros((B, 1)), per="example"),
    "fixed points": m.make_plan(jnp.array([0, 2, 1, 3, 4, 5]), jnp.linspace(0.1, 0.9, B)),
    "three sources": m.simplex_mixup(KEY, jnp.zeros((B, 1))),
    "mix of mixes": m.compose(m.mixup(KEY, jnp.zeros((B, 1))), m.mixup(jax.random.key(9), jnp.zeros((B, 1)))),
}


@pytest.mark.parametrize("name", PLANS)
def test_everything_is_the_same_linear_operator(name):
    plan = PLANS[name]
    big = matrix(plan)
    x = np.asarray(jax.random.normal(KEY, (B, 2, 3, 4)))
    flat = x.reshape(B, -1)
    np.testing.assert_allclose(m.mix(plan, jnp.asarray(x)).reshape(B, -1), big @ flat, rtol=1e-5, atol=1e-6)
    y = np.arange(B) % 3
    np.testing.assert_allclose(
        m.mix_targets(plan, jnp.asarray(y), num_classes=3), big @ np.eye(3)[y], rtol=1e-5, atol=1e-6
    )
    values = np.asarray(jax.random.normal(KEY, (B,)))
    np.testing.assert_allclose(m.mix_targets(plan, jnp.asarray(values)), big @ values, rtol=1e-5, atol=1e-6)
    pairs = np.asarray(jax.random.uniform(KEY, (B, B)))
    for side, expected in (("rows", big @ pairs), ("columns", pairs @ big.T), ("both", big @ pairs @ big.T)):
        np.testing.assert_allclose(m.mix_pairs(plan, jnp.asarray(pairs), side), expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("labels", [None, jnp.array([0, 1, 0, 1, 2, 2])])
def test_factored_pairs_are_the_dense_ones(name, labels):
    plan = PLANS[name]
    truth = jnp.eye(B) if labels is None else (labels[:, None] == labels[None, :]).astype(jnp.float32)
    for side in ("rows", "columns", "both"):
        factored = m.mix_pairs(plan, side=side, labels=labels).matrix(B, B)
        np.testing.assert_allclose(factored, m.mix_pairs(plan, truth, side), rtol=1e-5, atol=1e-6)


def test_compose_is_the_product_of_the_matrices():
    first, second = (m.mixup(jax.random.key(i), jnp.zeros((B, 1)), per="example") for i in (1, 2))
    np.testing.assert_allclose(matrix(m.compose(second, first)), matrix(second) @ matrix(first), rtol=1e-5, atol=1e-6)


def test_compose_with_masks_equals_mixing_twice():
    x = jax.random.normal(KEY, (B, 8, 8, 3))
    first, second = m.mixup(jax.random.key(1), x), m.cutmix(jax.random.key(2), x, per="example")
    np.testing.assert_allclose(m.mix(m.compose(second, first), x), m.mix(second, m.mix(first, x)), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(m.mix(m.compose(first, second), x), m.mix(first, m.mix(second, x)), rtol=1e-5, atol=1e-6)


def test_the_bank_is_where_partners_come_from():
    x, bank = jnp.zeros((2, 3)), jnp.arange(12.0).reshape(4, 3)
    plan = m.make_plan(jnp.array([3, 0]), jnp.array([0.0, 0.5]))
    np.testing.assert_allclose(m.mix(plan, x, bank), [[9, 10, 11], [0, 0.5, 1]])


def test_token_ids_are_selected_and_embeddings_follow():
    ids = jnp.array([[1, 2, 3, 4], [5, 6, 7, 8]])
    plan = m.spanmix(KEY, ids, weight=0.5, partner="reverse")
    mixed = np.asarray(m.mix(plan, ids))
    own = np.asarray(plan.mask[..., 0]) >= 0.5
    np.testing.assert_array_equal(mixed, np.where(own, ids, ids[::-1]))
    assert own.sum() == 4
    table = jax.random.normal(KEY, (9, 5))
    np.testing.assert_allclose(m.mix(plan, table[ids]), table[mixed], rtol=1e-6)


def test_a_mask_on_a_coarser_grid_is_averaged():
    plan = m.cutmix(KEY, jnp.zeros((B, 8, 8, 3)), per="example")
    coarse = m.at(plan, (4, 2))
    expected = np.asarray(plan.mask).reshape(B, 4, 2, 2, 4, 1).mean(axis=(2, 4))
    np.testing.assert_allclose(coarse.mask, expected, rtol=1e-6)
    tokens = m.at(plan, (4, 2), flatten=True)
    assert m.mix(tokens, jnp.ones((B, 8, 3))).shape == (B, 8, 3)
    np.testing.assert_allclose(tokens.mask.mean(axis=(1, 2)), plan.weight, rtol=1e-5)


@pytest.mark.parametrize("per", ["batch", "pair", "example"])
def test_how_often_is_drawn(per):
    weight = np.asarray(m.sample_weight(KEY, 8, alpha=0.7, per=per))
    assert len(set(weight.tolist())) == {"batch": 1, "pair": 4, "example": 8}[per]
    if per == "pair":
        np.testing.assert_array_equal(weight, weight[::-1])


def test_a_per_example_draw_depends_on_the_key_and_the_example_only():
    plan = m.cutmix(KEY, jnp.zeros((8, 8, 8, 3)), per="example")
    scaled = m.cutmix(KEY, jnp.ones((8, 8, 8, 1)), per="example")
    np.testing.assert_array_equal(plan.mask, scaled.mask)
    assert len({bytes(np.asarray(v)) for v in plan.mask}) > 4


def test_weight_laws():
    many = np.asarray(m.sample_weight(KEY, 4000, alpha=0.4, per="example"))
    np.testing.assert_allclose(many.mean(), 0.5, atol=0.03)
    np.testing.assert_allclose(many.var(), 0.25 / 1.8, atol=0.01)  # αβ / ((α+β)² (α+β+1))
    cut = np.asarray(m.sample_weight(KEY, 4000, alpha=2.0, low=0.4, high=0.9, per="example"))
    assert (cut >= 0.4).all()
    assert (cut <= 0.9).all()
    grid = np.linspace(0.4, 0.9, 1001)
    density = grid * (1 - grid)
    np.testing.assert_allclose(cut.mean(), (grid * density).sum() / density.sum(), atol=0.01)
    assert (np.asarray(m.sample_weight(KEY, 50, alpha=1.0, major=True, per="example")) >= 0.5).all()


def test_brightest_equals_a_stable_sort():
    rng = np.random.default_rng(0)
    values = rng.integers(0, 9, (7, 50)).astype(np.float32) / 8  # many ties
    counts = np.array([0, 1, 7, 25, 49, 50, 33])
    mask = np.asarray(brightest(jnp.asarray(values), jnp.asarray(counts)))
    for row, value, count in zip(mask, values, counts, strict=True):
        expected = np.zeros(50)
        expected[np.argsort(-value, kind="stable")[:count]] = 1
        np.testing.assert_array_equal(row, expected)


def test_partner_rules():
    labels = jnp.array([0, 0, 0, 1, 1, 2])
    for seed in range(5):
        key = jax.random.key(seed)
        deranged = np.asarray(m.derangement(key, 6))
        assert sorted(deranged) == list(range(6))
        assert (deranged != np.arange(6)).all()
        same = np.asarray(m.same_class_partner(key, labels))
        np.testing.assert_array_equal(labels[same], labels)
        assert (same[:5] != np.arange(5)).all()
        assert same[5] == 5
        other = np.asarray(m.other_class_partner(key, labels))
        assert (labels[other] != labels).all()
        cycle = np.asarray(m.one_cycle_partner(jax.random.uniform(key, (6, 4, 4))))
        seen, here = [], 0
        for _ in range(6):
            here = cycle[here]
            seen.append(int(here))
        assert sorted(seen) == list(range(6))


def test_gate_schedules_without_a_second_trace():
    traces = []

    @jax.jit
    def step(x, on):
        traces.append(1)
        return m.mix(m.gate(m.cutmix(KEY, x), on), x)

    x = jax.random.normal(KEY, (4, 8, 8, 3))
    np.testing.assert_array_equal(step(x, jnp.bool_(False)), x)
    assert float(jnp.abs(step(x, jnp.bool_(True)) - x).max()) > 0
    assert len(traces) == 1


def test_one_cross_entropy_for_pairs_and_for_mixed_targets():
    logits = jax.random.normal(KEY, (B, 4))
    labels = jnp.arange(B) % 4
    plan = m.mixup(KEY, logits, per="example")
    soft = m.soft_cross_entropy(logits, m.mix_targets(plan, labels, num_classes=4, smoothing=0.1))
    pair = m.pair_cross_entropy(logits, labels, labels[plan.partner], plan.weight, smoothing=0.1)
    np.testing.assert_allclose(soft, pair, rtol=1e-6)
    after = m.smooth_targets(m.mix_targets(plan, labels, num_classes=4), 0.1)
    np.testing.assert_allclose(m.soft_cross_entropy(logits, after), soft, rtol=1e-6)


def test_mixed_targets_stay_finite_at_the_ends():
    a = jnp.array([[1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])
    b = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]])
    for weight in (0.0, 0.5, 1.0):
        value, grad = jax.value_and_grad(lambda a, w=weight: m.slerp(a, b, w).sum())(a)
        assert np.isfinite(value)
        assert np.isfinite(grad).all()
        np.testing.assert_allclose(jnp.linalg.norm(m.slerp(a, b, weight), axis=1), 1, atol=1e-6)
        turned = np.cos((1 - weight) * np.pi)  # of the opposite ones: as far as anywhere on the way to -a
        np.testing.assert_allclose(m.slerp(a, b, weight)[1] @ a[1], turned, atol=1e-6)
    np.testing.assert_allclose(m.slerp(a, b, 0.3)[0], a[0], atol=1e-6)


def test_a_label_pool_is_the_batch_and_as_many_uniform_others():
    """The law of the partner, against its expectation over pools written out by loops."""
    bank, index, width = np.array([0.0, 0.5, 2.0], np.float32), np.array([0, 2]), 1.0
    expected = np.zeros((2, 3))
    for u in range(3):
        for v in range(3):
            pool = [*index, u, v]
            for row, i in enumerate(index):
                kernel = np.exp(-((bank[i] - bank[pool]) ** 2) / (2 * width**2))
                for j, mass in zip(pool, kernel / kernel.sum(), strict=True):
                    expected[row, j] += mass / 9
    draw = jax.vmap(lambda k: m.label_pool_partner(k, jnp.asarray(index), jnp.asarray(bank), bandwidth=width))
    partner = np.asarray(draw(jax.random.split(KEY, 20_000)))
    counts = np.stack([np.bincount(column, minlength=3) for column in partner.T]) / len(partner)
    np.testing.assert_allclose(counts, expected, atol=0.015)  # 4 standard errors
