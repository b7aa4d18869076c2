"""1-to-K contrast, soft ids, matching: the authors' figures, loops for missing captions, and what is drawn."""

import functools
import pathlib
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import objectives
from mixcon.errors import InputError
from mixcon.objectives.hard_pairs import _gumbel, _scrambled, _words

FILE = np.load(pathlib.Path(__file__).parents[1] / "golden" / "one-to-k.npz")


def golden(case: str) -> tuple[dict, dict]:
    sides = {"in": {}, "out": {}}
    for name in FILE.files:
        if name.startswith(f"{case}/"):
            _, side, key = name.split("/", 2)
            value = FILE[name]
            sides[side][key] = value.astype(np.float32) if value.dtype == np.float64 else value
    return sides["in"], sides["out"]


def unit(rng, *shape):
    x = rng.normal(size=shape)
    return jnp.asarray(x / np.linalg.norm(x, axis=-1, keepdims=True), jnp.float32)


# --- the authors' figures --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_loss_and_gradients_of_the_official_code(impl):
    given, want = golden("c0")

    @jax.jit
    def evaluate(image, text, temperature):
        def loss(image, text, temperature, **options):
            return objectives.one_to_k(image, text, temperature=temperature, normalize=True, impl=impl, **options)

        others = loss(image, text, temperature, divisor=2.0), loss(image, text, temperature, divisor=1.0)
        one = loss(image, text[::4], temperature)
        return jax.value_and_grad(loss, (0, 1, 2))(image, text, temperature), others, one

    (loss, gradients), others, one = evaluate(given["image"], given["text"], given["temperature"])
    np.testing.assert_allclose(loss, want["loss_div_k"], rtol=1e-5)
    np.testing.assert_allclose(others, (want["loss_div_2"], want["loss_no_div"]), rtol=1e-5)
    np.testing.assert_allclose(one, want["loss_one_to_one_lang0"], rtol=1e-5)
    for got, name in zip(gradients, ("image", "text", "temperature"), strict=True):
        np.testing.assert_allclose(got, want[f"grad_{name}"], rtol=1e-5, atol=1e-6)


def test_weights_and_matching_loss_of_the_official_code():
    given, want = golden("c1")
    image, text, captions = (*(objectives.l2_normalize(given[name]) for name in ("image", "text")), int(given["K"]))
    logits = image @ text.T / given["temperature"]
    positive = objectives.positive_language_weights(logits, captions)
    of_images, of_texts = objectives.hard_negative_weights(logits, captions)
    drawn = want["positive_text_index"]
    scale = want["positive_weights"].sum(1, keepdims=True)
    np.testing.assert_allclose(positive * scale, want["positive_weights"], rtol=1e-5, atol=1e-7)
    np.testing.assert_allclose(of_images[drawn], want["negative_image_weights"], rtol=1e-5, atol=1e-8)
    np.testing.assert_allclose(of_texts, want["negative_text_weights"], rtol=1e-5, atol=1e-8)

    def fused(images, texts):
        return jnp.concatenate([images, texts, images * texts], 1) @ given["itm_head"]

    rows = (
        fused(image, text[given["drawn_positive"]]),
        fused(image[given["drawn_negative_image"]], text[given["drawn_positive"]]),
        fused(image, text[given["drawn_negative_text"]]),
    )
    np.testing.assert_allclose(objectives.pair_matching(jnp.stack(rows, 1)), want["loss"], rtol=1e-5)


# --- what the formulas say -------------------------------------------------------------------------------------------


def plain_one_to_k(image, text, mask, temperature, normalization):
    batch, captions, _ = text.shape
    logits = np.einsum("bd,jkd->bjk", image, text) / temperature
    there = [[l for l in range(captions) if mask[b, l]] for b in range(batch)]
    of_images, of_texts = [], []
    for b in range(batch):
        everything = [logits[b, j, l] for j in range(batch) for l in there[j]]
        total = np.log(np.sum(np.exp(everything)))
        if there[b]:
            of_images.append(np.mean([total - logits[b, b, l] for l in there[b]]))
        for l in there[b]:
            of_texts.append(np.log(np.sum(np.exp(logits[:, b, l]))) - logits[b, b, l])
    weight = 1 if normalization == "code" else captions
    return (np.mean(of_images) * captions + np.mean(of_texts) * weight) / (2 * captions)


@pytest.mark.parametrize("normalization", ["code", "mean"])
def test_missing_captions_are_in_no_denominator_and_no_mean(normalization):
    rng = np.random.default_rng(0)
    image, text = unit(rng, 5, 4), unit(rng, 5, 3, 4)
    mask = rng.uniform(size=(5, 3)) < 0.6
    mask[2] = False

    @jax.jit
    def evaluate(text):
        return objectives.one_to_k(
            image, text, temperature=0.3, text_mask=mask, normalization=normalization, has_aux=True
        )

    loss, metrics = evaluate(text)
    np.testing.assert_allclose(loss, plain_one_to_k(image, text, mask, 0.3, normalization), rtol=1e-5)
    moved = text.at[2].set(unit(rng, 3, 4))
    again, gradient = jax.value_and_grad(lambda text: evaluate(text)[0])(moved)
    np.testing.assert_allclose(again, loss, rtol=1e-6)
    assert not np.asarray(gradient)[~mask].any()
    assert np.isfinite(gradient).all()
    counts = mask.sum(0)
    share = (np.asarray(metrics["per_caption_text_to_image"]) * counts).sum() / counts.sum()
    np.testing.assert_allclose(share, metrics["loss_text_to_image"], rtol=1e-5)


def test_pairs_of_one_image_share_the_target():
    rng = np.random.default_rng(1)
    image, text, ids = unit(rng, 6, 4), unit(rng, 6, 4), np.array([0, 1, 0, 2, 2, 2], np.int32)
    logits = np.asarray(image, np.float64) @ np.asarray(text, np.float64).T / 0.2
    target = (ids[:, None] == ids) / (ids[:, None] == ids).sum(1, keepdims=True)

    def one_way(logits):
        return -(target * (logits - np.log(np.exp(logits).sum(1, keepdims=True)))).sum(1).mean()

    want = (one_way(logits) + one_way(logits.T)) / 2
    np.testing.assert_allclose(objectives.soft_id_info_nce(image, text, ids, temperature=0.2), want, rtol=1e-5)


def test_padding_and_hidden_words_are_averaged_over_what_is_there():
    rng = np.random.default_rng(2)
    logits, targets = rng.normal(size=(3, 4, 5)).astype(np.float32), rng.integers(0, 5, (3, 4)).astype(np.int32)
    mask = rng.uniform(size=(3, 4)) < 0.5
    chances = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
    want = -np.mean([chances[i, j, targets[i, j]] for i, j in zip(*np.nonzero(mask), strict=True)])
    np.testing.assert_allclose(objectives.masked_tokens(logits, targets, mask=mask), want, rtol=1e-5)
    assert objectives.masked_tokens(logits, targets, mask=np.zeros_like(mask)) == 0
    pairs, there = logits[:, :3, :2], np.array([[True, True, False]] * 3)
    assert objectives.pair_matching(pairs, mask=there) == pytest.approx(objectives.pair_matching(pairs[:, :2]))


# --- draws -----------------------------------------------------------------------------------------------------------

BATCH, CAPTIONS = 6, 3


def features(seed=3):
    rng = np.random.default_rng(seed)
    return unit(rng, BATCH, 4), unit(rng, BATCH, CAPTIONS, 4)


@pytest.mark.parametrize("prefer", ["uniform", "probability", "similarity"])
def test_draws_follow_the_weights(prefer):
    """4,000 draws at once: shares within four standard errors of what the dense weights say."""
    image, text = features()
    logits = image @ text.reshape(-1, 4).T / 0.3
    draw = jax.vmap(lambda key: objectives.draw_matches(image, text, key=key, temperature=0.3, prefer=prefer))
    drawn = jax.jit(draw)(jax.random.split(jax.random.key(0), 4_000))
    of_images, of_texts = objectives.hard_negative_weights(logits, CAPTIONS)
    positive = objectives.positive_language_weights(logits, CAPTIONS, prefer)
    of_images = of_images.reshape(BATCH, CAPTIONS, BATCH) / of_images.sum(1).reshape(BATCH, CAPTIONS, 1)
    expected = {
        "caption": positive,
        "negative_image": jnp.einsum("bk,bkj->bj", positive, of_images),
        "negative_text": of_texts / of_texts.sum(1, keepdims=True),
    }
    for name, chances in expected.items():
        counts = np.stack([np.bincount(column, minlength=chances.shape[1]) for column in getattr(drawn, name).T])
        error = np.sqrt(chances * (1 - chances) / 4_000)
        assert (np.abs(counts / 4_000 - chances) <= 4 * error + 1e-3).all(), name


def test_the_streamed_draw_is_the_arg_max_of_the_dense_weights_with_the_same_noise():
    image, text = features()
    key = jax.random.key(7)
    logits = image @ text.reshape(-1, 4).T / 0.1
    _, of_texts = objectives.hard_negative_weights(logits, CAPTIONS)
    text_key = jax.random.split(key, 3)[2]
    words = _words(text_key, 0, BATCH, None)[:, None] + _words(text_key, 1, BATCH * CAPTIONS, None)[None]
    want = np.argmax(np.log(np.maximum(of_texts, 1e-30)) + _gumbel(_scrambled(words)), axis=1)
    for impl in ("dense", "tiled"):
        draw = functools.partial(objectives.draw_matches, temperature=0.1, impl=impl)
        np.testing.assert_array_equal(jax.jit(draw)(image, text, key=key).negative_text, want)


def test_draws_do_not_depend_on_the_mesh():
    rng = np.random.default_rng(4)
    image, text = unit(rng, 16, 4), unit(rng, 16, CAPTIONS, 4)
    mask = rng.uniform(size=(16, CAPTIONS)) < 0.7
    mask[:, 0], mask[3] = True, False
    key = jax.random.key(1)
    draw = functools.partial(objectives.draw_matches, key=key, temperature=0.2)
    want = jax.jit(draw)(image, text, text_mask=mask)
    mesh = jax.make_mesh((4,), ("data",), devices=jax.devices()[:4], axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("data"))
    with jax.set_mesh(mesh):
        placed = jax.device_put((image, text, mask), rows)
        got = jax.jit(lambda image, text, mask: draw(image, text, text_mask=mask, impl="ring"))(*placed)
    spec = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(
        lambda image, text, mask: draw(image, text, text_mask=mask, axis_name="data"),
        mesh=mesh,
        in_specs=(spec, spec, spec),
        out_specs=spec,
    )
    for other in (got, jax.jit(mapped)(*placed)):
        jax.tree.map(np.testing.assert_array_equal, want, other)
    drawn = np.asarray(want.negative_text)
    assert (want.caption[3], want.negative_image[3], drawn[3]) == (-1, -1, -1)
    kept = np.arange(16) != 3
    assert mask.reshape(-1)[drawn[kept]].all()
    assert mask[kept, np.asarray(want.caption)[kept]].all()
    assert (drawn[kept] // CAPTIONS != np.arange(16)[kept]).all()
    assert (np.asarray(want.negative_image)[kept] != np.arange(16)[kept]).all()


def test_blocks_draw_from_their_own_examples_and_ids_are_no_negatives():
    rng = np.random.default_rng(5)
    image, text = unit(rng, 8, 4), unit(rng, 8 * CAPTIONS, 4)
    ids = np.array([0, 0, 1, 2, 3, 3, 3, 3], np.int32)
    drawn = objectives.draw_matches_in_blocks(
        image, text, block=4, key=jax.random.key(0), temperature=0.2, ids=ids, prefer="similarity"
    )
    images, texts = np.asarray(drawn.negative_image), np.asarray(drawn.negative_text)
    assert (images[4:] == -1).all(), "a block of one image has no negative"
    assert (texts[4:] == -1).all()
    assert ((images[:4] >= 0) & (images[:4] < 4)).all()
    assert (ids[images[:4]] != ids[:4]).all()
    assert (ids[texts[:4] // CAPTIONS] != ids[:4]).all()


def test_a_large_draw_keeps_no_matrix():
    batch, captions = 4096, 2
    shapes = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((batch, 8), (batch * captions, 8))]
    program = (
        jax.jit(lambda image, text: objectives.draw_matches(image, text, key=jax.random.key(0), temperature=0.1))
        .lower(*shapes)
        .compile()
    )
    shapes = re.findall(r"\b(?:f|u|s|pred)\d*\[([\d,]+)\]", program.as_text())
    assert max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes) <= batch * batch * captions / 8


# --- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda i, t: objectives.one_to_k(i, t.reshape(-1, 4)[:-1], temperature=0.1), "captions of an image"),
        (lambda i, t: objectives.one_to_k(i, t[:, :0], temperature=0.1), "captions of an image"),
        (lambda i, t: objectives.one_to_k(i, t, temperature=0.0), "temperature"),
        (lambda i, t: objectives.one_to_k(i, t, temperature=0.1, divisor=-1.0), "divisor"),
        (lambda i, t: objectives.one_to_k(i, t, temperature=0.1, normalization="sum"), "normalization"),
        (lambda i, t: objectives.one_to_k(3 * i, t, temperature=0.1), "normalize=True"),
        (lambda i, t: objectives.one_to_k(i, t, temperature=0.1, text_mask=np.ones((6, 2), bool)), "text_mask"),
        (lambda i, t: objectives.one_to_k(i, t, temperature=0.1, text_mask=np.zeros((6, 3), bool)), "no caption"),
        (lambda i, t: objectives.soft_id_info_nce(i, t[:, 0], np.arange(5), temperature=0.1), "labels"),
        (lambda i, t: objectives.draw_matches(i[:1], t[:1], key=jax.random.key(0), temperature=0.1), "at least two"),
        (lambda i, t: objectives.draw_matches(i, t, key=jax.random.key(0), temperature=0.1, prefer=1), "prefer"),
        (
            lambda i, t: objectives.draw_matches_in_blocks(i, t, block=4, key=jax.random.key(0), temperature=0.1),
            "divide the batch",
        ),
        (lambda i, t: objectives.hard_negative_weights(i @ t[:, 0].T, 4), "logits must be"),
        (lambda i, t: objectives.pair_matching(i), "logits must be"),
        (lambda i, t: objectives.masked_tokens(t, np.zeros((6, 3))), "integer targets"),
    ],
)
def test_mistakes_are_refused_in_words(call, words):
    image, text = features()
    with pytest.raises(InputError, match=words):
        call(image, text)
