"""Policies by name on a classifier: what they see, what they give, and the losses of their targets."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import mixers as m
from mixcon.errors import InputError
from mixcon.mixers import scores
from mixcon.mixers.classifier import NAMES, READS, Network, Sight, drawing

B, SIZE, CLASSES = 8, 16, 5
KEY = jax.random.key(3)
SPECIFIC = {
    "resizemix": {"scope": (0.25, 0.8)},
    "maskmix": {"cell": 4},
    "mixpro": {"cell": 4},
    "puzzlemix": {"block_nums": (2, 4)},
    "gridmix": {"holes": (2, 4)},
    "cmixup": {"bandwidth": 0.5},
}
TWICE = {"regmixup": 2, "multi_mixup": 3}
DENSE = ("tl_align",)
QUICK = ("none", "mixup", "regmixup", "smmix", "tl_align")  # the others' values are looked at by `pytest -m slow`
UNEQUAL = ("snapmix", "tokenmix")  # their shares need not sum to one


@pytest.fixture(scope="module")
def sight():
    rng = np.random.default_rng(0)
    weight = jnp.asarray(rng.normal(size=(SIZE * SIZE * 3, CLASSES)), jnp.float32)
    maps = jax.nn.softmax(jnp.asarray(rng.normal(size=(2, B, 2, 17, 17)), jnp.float32), axis=-1)
    hidden = jnp.asarray(rng.uniform(size=(B, 4, 4, 6)), jnp.float32)
    network = Network(
        logits=lambda x: x.reshape(x.shape[0], -1) @ weight,
        feature_map=lambda x: hidden,
        head=(jnp.asarray(rng.normal(size=(6, CLASSES)), jnp.float32), jnp.zeros(CLASSES)),
        attention=lambda x: maps,
        places=("stage1", "stage2"),
        grid=(4, 4),
    )
    images = jnp.asarray(rng.uniform(size=(B, SIZE, SIZE, 3)), jnp.float32)
    return Sight(images, jnp.asarray(rng.integers(0, CLASSES, B), jnp.int32), network)


def through(draft, sight):
    """A network of two hidden places: both the images; logits by the network's own."""
    x = draft.hook("stage2", draft.hook("stage1", draft.images))
    n = x.shape[0]
    return sight.network.logits(x), sight.network.attention(x) if n == B else None


def runner(name, sight):
    draw = drawing(name, SPECIFIC.get(name))

    def run(key, images, labels):
        seen = sight._replace(images=images, labels=labels)
        draft = draw(key, seen)
        return draft.images, *draft.targets(*through(draft, seen))

    return run


@pytest.mark.parametrize("name", NAMES)
def test_every_name_traces_to_rows_of_images_classes_and_shares(name, sight):
    images, classes, shares = jax.eval_shape(runner(name, sight), KEY, sight.images, sight.labels)
    rows = B * TWICE.get(name, 1)
    assert images.shape == (rows, SIZE, SIZE, 3)
    assert classes.shape == shares.shape == (rows, CLASSES if name in DENSE else shares.shape[1])
    assert jnp.issubdtype(classes.dtype, jnp.integer)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in NAMES])
def test_images_stay_in_their_range_and_shares_are_of_real_classes(name, sight):
    images, classes, shares = jax.jit(runner(name, sight))(KEY, sight.images, sight.labels)
    assert images.min() >= -1e-6
    assert images.max() <= 1 + 1e-6
    if name in DENSE:
        assert (np.asarray(classes) == np.arange(CLASSES)).all()
    elif name != "simplex_mixup":  # whose sources are all drawn
        np.testing.assert_array_equal(classes[:, 0], np.tile(sight.labels, TWICE.get(name, 1)))
    if name not in UNEQUAL:
        np.testing.assert_allclose(shares.sum(1), 1, atol=1e-5)


def test_a_plain_policy_is_its_plan(sight):
    draft = drawing("cutmix", {"alpha": 0.3})(KEY, sight)
    plan = m.cutmix(KEY, sight.images, alpha=0.3)
    np.testing.assert_array_equal(draft.images, m.mix(plan, sight.images))
    expected = m.mix_targets(plan, sight.labels, num_classes=CLASSES)
    rows = scores.target_rows(draft.classes, draft.shares, num_classes=CLASSES)
    np.testing.assert_allclose(rows, expected, atol=1e-6)


def test_manifold_mixup_mixes_at_exactly_the_drawn_place(sight):
    value = sight.images[..., 0].mean(axis=2)  # [B, 16] stands for a hidden layer
    where = set()
    for seed in range(12):
        key = jax.random.key(seed)
        draft = drawing("manifold_mixup", {"layers": 3})(key, sight)
        plan, layer = m.manifold_mixup(key, sight.images, layers=3)
        expected = [m.mix(plan, v) if i == layer else v for i, v in enumerate((sight.images, value, value))]
        got = (draft.images, draft.hook("stage1", value), draft.hook("stage2", value))
        for a, b in zip(got, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)
        where.add(int(layer))
    assert where == {0, 1, 2}
    with pytest.raises(InputError, match="3 places"):
        drawing("manifold_mixup", {"layers": 4})(KEY, sight)


def test_alignmix_mixes_the_last_place_with_the_shares_of_its_labels(sight):
    draft = drawing("alignmix", {"align": "partner"})(KEY, sight)
    h = sight.network.feature_map(sight.images)
    np.testing.assert_array_equal(draft.images, sight.images)
    np.testing.assert_array_equal(draft.hook("stage1", h), h)
    weight = float(draft.shares[0, 0])
    partner = m.mixup(jax.random.split(KEY)[0], sight.images, alpha=2.0).partner
    matched = m.transport_between(h, h[partner]) @ h[partner].reshape(B, 16, 6)
    expected = weight * h + (1 - weight) * matched.reshape(h.shape)
    np.testing.assert_allclose(draft.hook("stage2", h), expected, atol=1e-5)


def test_spanmix_leaves_the_class_token_and_takes_whole_patches(sight):
    draft = drawing("spanmix", {"partner": "reverse"})(KEY, sight)
    tokens = jnp.broadcast_to(jnp.arange(B, dtype=jnp.float32)[:, None, None], (B, 17, 2))
    mixed = np.asarray(draft.hook("block0", tokens))
    np.testing.assert_array_equal(mixed[:, 0], tokens[:, 0])
    for i in range(B):
        own, other = mixed[i, 1:, 0] == i, mixed[i, 1:, 0] == B - 1 - i
        assert (own ^ other).all()
        assert own.mean() == pytest.approx(float(draft.shares[i, 0]))


def test_puzzlemix_reads_the_gradient_of_the_loss_and_snapmix_the_activation_of_the_class(sight):
    weight = np.asarray(jax.jacobian(lambda x: sight.network.logits(x)[0])(sight.images[:1]))[:, 0]
    p = np.asarray(jax.nn.softmax(sight.network.logits(sight.images)))
    seen = READS["puzzlemix"]["saliency"](sight)
    for i, y in enumerate(np.asarray(sight.labels)):
        gradient = np.einsum("c,chwk->hwk", p[i] - np.eye(CLASSES)[y], weight) / B
        np.testing.assert_allclose(seen[i], np.sqrt((gradient**2).mean(-1)), rtol=1e-3)

    hidden, shape = sight.network.feature_map(sight.images), sight.images.shape[1:3]
    expected = m.semantic_percent_map(hidden, *sight.network.head, sight.labels, shape)
    np.testing.assert_allclose(READS["snapmix"]["percent"](sight), expected, rtol=1e-6)


def test_what_cannot_be_drawn_is_refused_in_words(sight):
    poor = sight._replace(network=Network(sight.network.logits))
    for call, message in (
        (lambda: drawing("cutmx"), "did you mean .*cutmix"),
        (lambda: drawing("automix"), "learned"),
        (lambda: drawing("cutmix", {"alfa": 1.0}), "did you mean alpha"),
        (lambda: drawing("augmix", {"ops": ()}), "takes no argument 'ops'"),
        (lambda: drawing("smmix")(KEY, poor), "class token"),
        (lambda: drawing("tokenmix")(KEY, poor), "class token"),
        (lambda: drawing("attentivemix")(KEY, poor), "residual network"),
        (lambda: drawing("alignmix")(KEY, poor), "residual network"),
        (lambda: drawing("snapmix")(KEY, poor), "residual network"),
        (lambda: drawing("spanmix")(KEY, poor), "transformer"),
        (lambda: drawing("transmix")(KEY, sight).targets(jnp.zeros((B, CLASSES)), None), "class token"),
        (lambda: drawing("saliencymix")(KEY, sight._replace(images=sight.images[..., :1])), "RGB"),
    ):
        with pytest.raises(InputError, match=message):
            call()


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(1)
    shares = rng.uniform(size=(B, 1))
    classes = jnp.asarray(rng.integers(0, CLASSES, (B, 2)), jnp.int32)
    shares = jnp.asarray(np.hstack([shares, 1 - shares]), jnp.float32)
    return jnp.asarray(rng.normal(size=(B, CLASSES)), jnp.float32), classes, shares


def test_soft_and_binary_match_loops(pair):
    z, classes, shares = pair
    log_p = np.asarray(jax.nn.log_softmax(z))
    soft, binary = [], []
    for i in range(B):
        y = np.full(CLASSES, 0.1 / CLASSES)
        for c, s in zip(classes[i], shares[i], strict=True):
            y[c] += 0.9 * s
        soft.append(-sum(y[c] * log_p[i, c] for c in range(CLASSES)))
        on = [np.log1p(np.exp(float(-z[i, c]))) for c in range(CLASSES)]
        off = [np.log1p(np.exp(float(z[i, c]))) for c in range(CLASSES)]
        binary.append(sum(y[c] * on[c] + (1 - y[c]) * off[c] for c in range(CLASSES)))
    assert float(scores.soft(*pair, smoothing=0.1)[0]) == pytest.approx(np.mean(soft), rel=1e-5)
    assert float(scores.binary(*pair, smoothing=0.1)[0]) == pytest.approx(np.mean(binary), rel=1e-5)


def test_decoupled_scores_are_the_library_losses_and_need_a_pair(pair):
    z, classes, shares = pair
    loss, parts = scores.decoupled(*pair, eta=0.2, power=0.5)
    expected, _ = m.decoupled_mixup(z, classes[:, 0], classes[:, 1], shares[:, 0], eta=0.2, power=0.5)
    assert float(loss) == pytest.approx(float(expected), rel=1e-6)
    assert parts.keys() == {"mix_ce", "reg_a", "reg_b"}
    plan = m.Plan(jnp.roll(jnp.arange(B), 1), shares[:, 0])
    rows = m.two_hot_targets(plan, classes[:, 0], num_classes=CLASSES, threshold=0.8, kind="pow")
    both = jnp.stack([classes[:, 0], classes[plan.partner, 0]], axis=1)
    assert float(scores.two_hot(z, both, shares)[0]) == pytest.approx(float(m.binary_cross_entropy(z, rows)), rel=1e-6)
    for loss in (scores.decoupled, scores.two_hot):
        with pytest.raises(InputError, match="two sources"):
            loss(z, classes[:, :1], shares[:, :1])
