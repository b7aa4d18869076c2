"""The speech tower against its definition, and towers that are locked."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from mixcon import models
from mixcon.errors import InputError
from mixcon.models.speech import sinusoids, speech_transformer
from mixcon.train import optim

TINY = {"width": 8, "depth": 1, "heads": 2, "bands": 5, "frames": 12}


def test_convolutions_and_positions_are_those_of_plain_loops():
    model = models.functional(speech_transformer(**TINY))
    params, extra = jax.jit(model.init)(jax.random.key(0))
    mels = np.random.default_rng(0).normal(size=(2, 10, 5)).astype(np.float32)

    def conv(x, layer, stride):
        kernel, bias = np.asarray(layer["kernel"]), np.asarray(layer["bias"])  # [3, in, out]
        padded = np.pad(x, ((1, 1), (0, 0)))
        rows = [sum(padded[t + k] @ kernel[k] for k in range(3)) + bias for t in range(0, len(x), stride)]
        return np.asarray(jax.nn.gelu(jnp.asarray(np.stack(rows)), approximate=False))

    def into_blocks(module, x, *, train, key):
        x = jax.nn.gelu(module.conv1(x), approximate=False)
        return jax.nn.gelu(module.conv2(x), approximate=False)

    got, _ = model.apply(params, extra, mels, method=into_blocks)
    want = np.stack([conv(conv(x, params["conv1"], 1), params["conv2"], 2) for x in mels])
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-5)
    out, _ = model.apply(params, extra, mels)
    assert out.shape == (2, 8)
    flipped, _ = model.apply(params, extra, mels[:, ::-1])
    assert np.abs(flipped - out).max() > 1e-3, "positions tell the frames apart"
    np.testing.assert_allclose(sinusoids(3, 4)[2], [np.sin(2), np.sin(2e-4), np.cos(2), np.cos(2e-4)], rtol=1e-5)


def test_numbers_that_do_not_fit_are_refused():
    with pytest.raises(InputError, match="even width"):
        speech_transformer(**TINY | {"width": 9, "heads": 3})
    model = models.functional(speech_transformer(**TINY))
    variables = model.init(jax.random.key(0))
    with pytest.raises(InputError, match="log-mel frames"):
        model.apply(*variables, np.zeros((1, 13, 5), np.float32))


def test_a_locked_tower_gets_no_gradient_drops_nothing_and_has_no_optimiser_state():
    spec = {
        "name": "dual_encoder",
        "embed_dim": 8,
        "image_projection": "none",
        "locked": ("image",),
        "image": {"name": "vit", "width": 8, "depth": 1, "heads": 2, "patch": 4, "image_size": 8, "dropout": 0.5},
        "text": {"name": "text_transformer", "vocab_size": 9, "width": 8, "depth": 1, "heads": 2, "pool": "mean"},
    }
    model = models.functional(models.build(spec))
    params, extra = jax.jit(model.init)(jax.random.key(0))
    images, ids = jnp.ones((2, 8, 8, 3)), jnp.ones((2, 4), jnp.int32)

    @jax.jit
    def loss(params, key):
        out, _ = model.apply(params, extra, images, ids, train=True, key=key)
        return (out["image"] * out["text"] * jnp.arange(8.0)[None]).sum(), out["image"]

    gradient, one = jax.grad(loss, has_aux=True)(params, jax.random.key(1))
    _, other = jax.grad(loss, has_aux=True)(params, jax.random.key(2))
    np.testing.assert_array_equal(one, other)
    assert not any(np.asarray(g).any() for g in jax.tree.leaves(gradient["image"]))
    assert all(np.asarray(g).any() for g in jax.tree.leaves(gradient["text_projection"]))
    with jax.numpy_dtype_promotion("standard"):
        tx = optim.optimizer(name="adamw", learning_rate=1e-3, overrides=((r"^image/", {"freeze": True}),))
        state = tx.init(params)
        moved = optax.apply_updates(params, tx.update(gradient, state, params)[0])
    moments = sum(leaf.size for leaf in jax.tree.leaves(state) if leaf.ndim)
    assert moments <= 2 * models.count({k: v for k, v in params.items() if k != "image"})
    jax.tree.map(np.testing.assert_array_equal, moved["image"], params["image"])
    with pytest.raises(InputError, match="locked"):
        models.build(spec | {"locked": ("audio",)})
