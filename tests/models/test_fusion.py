"""A fusion encoder: what its blocks compute, what padding and images may change, and where gradients go."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import models
from mixcon.errors import InputError

SPEC = {
    "name": "fusion_encoder",
    "embed_dim": 8,
    "depth": 2,
    "dropout": 0.0,
    "image": {"name": "vit", "width": 12, "depth": 1, "heads": 2, "patch": 4, "image_size": 8, "pool": "cls"},
    "text": {"name": "bert", "vocab_size": 20, "size": None, "width": 16, "depth": 1, "heads": 2, "dropout": 0.0}
    | {"context_length": 6, "pad_id": 0},
}


@pytest.fixture(scope="module")
def setting():
    model = models.functional(models.build(SPEC))
    params, extra = jax.jit(model.init)(jax.random.key(0))
    rng = np.random.default_rng(0)
    images = jnp.asarray(rng.normal(size=(3, 8, 8, 3)), jnp.float32)
    ids = jnp.asarray(rng.integers(1, 20, (3, 6)), jnp.int32).at[1, 4:].set(0)
    out, _ = jax.jit(model.apply)(params, extra, images, ids)
    return model, params, images, ids, out


def norm(x, p):
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-12) * p["scale"] + p["bias"]


def attention(q, k, v, mask=None):
    """[T, W], [S, W], [S, W] -> [T, W], two heads, by loops."""
    out = np.zeros_like(q)
    for head in (slice(0, 8), slice(8, 16)):
        scores = q[:, head] @ k[:, head].T / np.sqrt(8)
        scores = scores if mask is None else np.where(mask[None], scores, -np.inf)
        weights = np.exp(scores - scores.max(1, keepdims=True))
        out[:, head] = weights / weights.sum(1, keepdims=True) @ v[:, head]
    return out


def test_match_is_what_the_formulas_say(setting):
    model, params, _, ids, out = setting
    got, _ = jax.jit(functools.partial(model.apply, method="match"))(
        params, {}, ids, out["text_tokens"], out["image_tokens"]
    )
    p = jax.tree.map(lambda x: np.asarray(x, np.float64), params)

    def linear(x, p):
        return x @ p["kernel"] + p["bias"]

    def gelu(x):
        return np.asarray(jax.nn.gelu(x, approximate=False), np.float64)

    for row in range(3):
        x, image = np.asarray(out["text_tokens"][row], np.float64), np.asarray(out["image_tokens"][row], np.float64)
        mask = np.asarray(ids[row]) != 0
        for block in (p["fusion"]["0"], p["fusion"]["1"]):
            qkv = linear(x, block["attn"]["qkv"]).reshape(6, 2, 3, 8)
            q, k, v = (qkv[:, :, i].reshape(6, 16) for i in range(3))
            x = norm(x + linear(attention(q, k, v, mask), block["attn"]["out"]), block["norm1"])
            cross = block["cross"]
            mixed = attention(linear(x, cross["q"]), linear(image, cross["k"]), linear(image, cross["v"]))
            x = norm(x + linear(mixed, cross["out"]), block["norm2"])
            x = norm(x + linear(gelu(linear(x, block["mlp"]["fc1"])), block["mlp"]["fc2"]), block["norm3"])
        want = linear(gelu(norm(linear(x[0], p["match_fc1"]), p["match_norm"])), p["match_fc2"])
        np.testing.assert_allclose(got[row], want, rtol=2e-4, atol=2e-5)


def test_embeddings_are_the_first_tokens_projected(setting):
    _, params, _, _, out = setting
    for side in ("image", "text"):
        p = params[f"{side}_projection"]
        want = np.asarray(out[f"{side}_tokens"][:, 0]) @ np.asarray(p["kernel"]) + np.asarray(p["bias"])
        want = want / np.linalg.norm(want, axis=1, keepdims=True)
        np.testing.assert_allclose(out[side], want, rtol=1e-5, atol=1e-6)


def test_hidden_words_are_guessed_from_words_and_image_with_the_shared_table(setting):
    model, params, _, ids, out = setting
    positions = jnp.asarray([[1, 2], [3, 0], [5, 4]], jnp.int32)

    @jax.jit
    def loss(params, image_tokens):
        guessed, _ = model.apply(params, {}, ids, positions, image_tokens, method="fill")
        return jnp.square(guessed).sum(), guessed

    (_, guessed), (of_params, of_image) = jax.value_and_grad(loss, (0, 1), has_aux=True)(params, out["image_tokens"])
    assert guessed.shape == (3, 2, 20)
    assert np.abs(of_image).max() > 0
    assert (np.abs(of_params["text"]["token_embed"]).max(1) > 0).all(), "every row of the table is an answer"
    assert not np.abs(of_params["match_fc1"]["kernel"]).any()


@pytest.mark.slow
def test_stacked_blocks_and_rematerialisation_change_nothing(setting):
    model, params, images, ids, _ = setting
    folded = models.functional(models.build(SPEC | {"scan_layers": True, "remat": True}))
    shapes = jax.eval_shape(folded.init, jax.random.key(0))[0]
    stacked = params | {"fusion": jax.tree.map(lambda *x: jnp.stack(x), *(params["fusion"][str(i)] for i in (0, 1)))}
    for tower in ("image", "text"):
        stacked[tower] = params[tower] | {"blocks": jax.tree.map(lambda x: x[None], params[tower]["blocks"]["0"])}
    assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(lambda x: x.shape, shapes)

    def both(model, params):
        def loss(params):
            out, _ = model.apply(params, {}, images, ids, train=True, key=jax.random.key(1))
            tokens = ids, out["text_tokens"], out["image_tokens"]
            return model.apply(params, {}, *tokens, train=True, key=jax.random.key(2), method="match")[0].sum()

        return jax.jit(jax.value_and_grad(loss))(params)

    (a, of_a), (b, of_b) = both(model, params), both(folded, stacked)
    np.testing.assert_allclose(a, b, rtol=1e-4)
    last = of_a["fusion"]["1"]["cross"]["k"]["kernel"]
    np.testing.assert_allclose(of_b["fusion"]["cross"]["k"]["kernel"][1], last, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image": SPEC["image"] | {"pool": "mean"}}, "pool='cls'"),
        ({"text": {"name": "text_transformer", "vocab_size": 9, "width": 16, "depth": 1, "eos_id": 1}}, "not causal"),
        ({"depth": 0}, "depth=0"),
        ({"temperature": 0.0}, "temperature"),
    ],
)
def test_mistakes_are_refused_in_words(change, words):
    with pytest.raises(InputError, match=words):
        models.functional(models.build(SPEC | change))
