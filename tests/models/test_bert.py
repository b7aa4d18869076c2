"""BERT: `transformers`' model with the same weights, its sizes, padding, and what is refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.models import bert, build, count, functional

KEY = jax.random.key(0)
TINY = {"size": None, "width": 16, "depth": 2, "heads": 2, "context_length": 10, "dropout": 0.0}
PARAMETERS = {  # of the published encoders, 30,522 tokens, without their pooler of width (width + 1)
    "tiny": 4_369_408,
    "mini": 11_104_768,
    "small": 28_500_992,
    "medium": 41_110_528,
    "base": 108_891_648,
    "large": 334_092_288,
}


@pytest.mark.parametrize("size", PARAMETERS)
def test_sizes_have_the_published_number_of_parameters(size):
    model = functional(bert(30_522, size, scan_layers=True))
    params, extra = jax.eval_shape(model.init, KEY)
    assert count(params) == PARAMETERS[size]
    assert not extra


def test_texts_do_not_depend_on_their_padding(drawn):
    model, params, _ = drawn(bert(20, **TINY, pad_id=0))
    ids = np.array([[2, 5, 6, 3, 0, 0], [2, 7, 8, 9, 9, 3]], np.int32)
    both, _ = model.apply(params, {}, ids)
    short, _ = model.apply(params, {}, ids[:1, :4])
    np.testing.assert_allclose(both[0], short[0], atol=1e-5)
    states, _ = model.apply(params, {}, ids, method="tokens")
    np.testing.assert_array_equal(states[:, 0], both)
    mean, _ = functional(bert(20, **TINY, pad_id=0, pool="mean")).apply(params, {}, ids)
    np.testing.assert_allclose(mean[0], states[0, :4].mean(0), atol=1e-5)


def test_stacked_and_bfloat16_towers_train(drawn):
    spec = {"name": "bert", "vocab_size": 20, **TINY, "dropout": 0.1, "dtype": "bfloat16", "scan_layers": True}
    model, params, _ = drawn(build(spec | {"remat": True}))
    ids = jnp.asarray([[2, 5, 6, 3, 0, 0]], jnp.int32)

    def loss(params):
        out, _ = model.apply(params, {}, ids, train=True, key=jax.random.key(1))
        return jnp.sum(jnp.square(out.astype(jnp.float32)[:, :3]))

    with jax.numpy_dtype_promotion("standard"):
        grads = jax.jit(jax.grad(loss))(params)
    assert all(bool(jnp.isfinite(g).all()) for g in jax.tree.leaves(grads))
    assert float(jnp.abs(grads["token_embed"]).max()) > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": "huge"}, "size='huge'"),
        ({"size": None}, "width= and depth="),
        ({"pool": "eos"}, "pool"),
        ({"pad_id": 99}, "pad_id"),
        ({"context_length": 0}, "context_length"),
        ({"width": 100, "heads": 7}, "heads"),
    ],
)
def test_mistakes_are_refused_in_words(arguments, words):
    with pytest.raises(InputError, match=words):
        bert(20, **arguments)


def test_long_texts_and_floats_are_refused(drawn):
    model, params, _ = drawn(bert(20, **TINY))
    with pytest.raises(InputError, match="11 tokens exceed"):
        model.apply(params, {}, np.zeros((1, 11), np.int32))
    with pytest.raises(InputError, match="integers"):
        model.apply(params, {}, np.zeros((1, 5), np.float32))
