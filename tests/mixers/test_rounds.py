"""Draws of the game between a classifier and a learned mixer, and the masks made for them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from mixcon.errors import InputError
from mixcon.mixers import AdaptiveMask, MixBlock, automix
from mixcon.mixers.plan import Plan
from mixcon.mixers.rounds import draw_round, learned_plan, symmetric_beta

BATCH = 6
FEATURES = jnp.asarray(np.random.default_rng(0).normal(size=(BATCH, 2, 2, 8)), jnp.float32)


def net(**options):
    """A generator whose weights are not small, so that masks differ."""
    made = AdaptiveMask(8, 2, rngs=nnx.Rngs(0), **options)
    for layer in (made.query, made.key, made.value):
        layer.kernel = nnx.Param(50 * layer.kernel[...])
    return made


@pytest.fixture(scope="module")
def drawn():
    many = jax.jit(jax.vmap(lambda key: draw_round(key, BATCH, num_sources=3, random_count=True)))
    return many(jax.random.split(jax.random.key(0), 200))


def test_three_sources_share_one_weight_and_no_permutation(drawn):
    generator, student = jax.tree.map(lambda x: x[np.asarray((drawn[0].weight[:, 0] > 0).all(axis=-1))][0], drawn)
    np.testing.assert_allclose(generator.weight.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_array_equal(generator.weight, student.weight)
    np.testing.assert_array_equal(generator.weight, jnp.broadcast_to(generator.weight[:1], (BATCH, 3)))
    orders = [tuple(np.asarray(plan.partner[:, i])) for plan in (generator, student) for i in range(3)]
    assert all(sorted(order) == list(range(BATCH)) for order in orders)
    assert len(set(orders)) == 6


@pytest.fixture(scope="module")
def pair():
    return jax.jit(lambda key: draw_round(key, BATCH, num_sources=2, alpha=2.0))(jax.random.key(1))


def test_two_sources_are_the_example_and_a_partner_with_weights_of_their_own(pair):
    generator, student = pair
    for plan in pair:
        np.testing.assert_array_equal(plan.partner[:, 0], np.arange(BATCH))
        np.testing.assert_allclose(plan.weight.sum(axis=1), 1, rtol=1e-6)
    assert float(generator.weight[0, 0]) != float(student.weight[0, 0])


def test_a_drawn_number_of_sources_is_either_and_follows_its_rules(drawn):
    present = np.asarray((drawn[0].weight[:, 0] > 0).sum(axis=-1))
    assert set(present) == {2, 3}
    assert 70 < (present == 2).sum() < 130  # half of 200, within four standard deviations
    for plan in drawn:
        np.testing.assert_allclose(plan.weight.sum(axis=-1), 1, rtol=1e-5)
        np.testing.assert_array_equal(
            plan.partner[present == 2][:, :, 0], np.tile(np.arange(BATCH), ((present == 2).sum(), 1))
        )
    shared = np.asarray(drawn[0].weight == drawn[1].weight).all(axis=(1, 2))
    np.testing.assert_array_equal(shared, present == 3)


def test_an_absent_source_leaves_the_game_of_the_others(pair):
    generator = pair[0]
    extra = jnp.full((BATCH, 1), 3, jnp.int32)
    three = Plan(jnp.concatenate([generator.partner, extra], 1), jnp.pad(generator.weight, ((0, 0), (0, 1))))
    made = net(weight_channel=True)
    two, padded = (learned_plan(made, FEATURES, plan).mask for plan in (generator, three))
    assert float(two.std()) > 0.01
    np.testing.assert_allclose(padded[..., :2], two, rtol=1e-5, atol=1e-6)
    assert not np.any(padded[..., 2])


def test_near_empty_weights_mix_linearly():
    plan = Plan(
        jnp.stack([(jnp.arange(BATCH) + i) % BATCH for i in range(3)], axis=1),
        jnp.broadcast_to(jnp.array([[0.02, 0.5, 0.48]]), (BATCH, 3)),
    )
    np.testing.assert_allclose(learned_plan(net(), FEATURES, plan, margin=0.03).mask[3, 1, 2], [0.02, 0.5, 0.48])
    assert np.ptp(learned_plan(net(), FEATURES, plan).mask[..., 1]) > 0.01


@pytest.mark.parametrize("variant", ["automix", "samix"])
def test_automix_and_samix_play_by_the_same_draws(variant, pair, drawn):
    block = MixBlock(8, 2, variant=variant, rngs=nnx.Rngs(0))
    generator = pair[0]
    ours = learned_plan(block, FEATURES, generator)
    expected = automix(block, FEATURES, generator.partner[:, 1], generator.weight[0, 0])
    np.testing.assert_array_equal(ours.mask, expected.mask)
    np.testing.assert_array_equal(ours.partner, generator.partner[:, 1])
    with pytest.raises(InputError, match="num_sources=2"):
        learned_plan(block, FEATURES, jax.tree.map(lambda x: x[0], drawn[0]))


def test_normed_projections_normalise_each_source(drawn):
    """q and k of a source have mean 0 over its batch before the ReLU, so its scale does not matter."""
    made = net(norm=True)
    assert made.query.bias is None
    plan = jax.tree.map(lambda x: x[0], drawn[0])
    features = jnp.concatenate([FEATURES[:3], 7 * FEATURES[3:]])
    masks = learned_plan(made, features, plan).mask
    assert np.isfinite(masks).all()
    np.testing.assert_allclose(masks.sum(axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("alpha", [1.0, 2.0])
def test_shares_have_the_moments_of_beta(alpha):
    """Var = 1 / (4 (2α + 1)), and a fourth central moment of 3 / (16 (2α + 1) (2α + 3))."""
    draws = np.asarray(symmetric_beta(jax.random.key(0), 20_000, alpha), np.float64) - 0.5
    assert abs(draws.mean()) < 0.01
    np.testing.assert_allclose((draws**2).mean(), 1 / (4 * (2 * alpha + 1)), rtol=0.04)
    np.testing.assert_allclose((draws**4).mean(), 3 / (16 * (2 * alpha + 1) * (2 * alpha + 3)), rtol=0.06)


@pytest.mark.parametrize(("count", "batch", "alpha"), [(1, 6, 1.0), (7, 6, 1.0), (3, 1, 1.0), (3, 6, 0.0)])
def test_no_round_of_one_image_or_of_more_than_the_batch(count, batch, alpha):
    with pytest.raises(InputError):
        draw_round(jax.random.key(0), batch, num_sources=count, alpha=alpha)
