"""The transformer block against plain loops, and its options."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.models import functional, vit
from mixcon.models.layers import ACTIVATIONS, Block, BlockConfig, LayerNorm, drop_path, dropout, float_dtype
from mixcon.models.weights import stack_blocks

WIDTH, HEADS, TOKENS = 12, 3, 5
CONFIG = BlockConfig(width=WIDTH, depth=2, heads=HEADS, mlp_dim=20, activation="quick_gelu", norm_eps=1e-5)


@pytest.fixture(scope="module")
def block(drawn):
    return drawn(lambda rngs: Block(CONFIG, rngs))


X = np.random.default_rng(0).normal(size=(2, TOKENS, WIDTH)).astype(np.float32)


def norm_by_hand(x, p):
    mean = sum(x) / len(x)
    var = sum((v - mean) ** 2 for v in x) / len(x)
    return [(v - mean) / math.sqrt(var + 1e-5) * s + b for v, s, b in zip(x, p["scale"], p["bias"], strict=True)]


def block_by_hand(x, p, *, causal, mask):
    """One example [T,D], head by head and token by token, in float64."""
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), p)
    x = x.astype(np.float64)
    tokens, width = x.shape
    size = width // HEADS
    y = np.stack([norm_by_hand(row, p["norm1"]) for row in x])
    qkv = y @ p["attn"]["qkv"]["kernel"] + p["attn"]["qkv"]["bias"]
    mixed = np.zeros_like(x)
    for h in range(HEADS):
        q, k, v = (qkv[:, (3 * h + i) * size : (3 * h + i + 1) * size] for i in range(3))
        for t in range(tokens):
            seen = [s for s in range(tokens) if (s <= t or not causal) and mask[s]]
            weights = np.array([math.exp(q[t] @ k[s] / math.sqrt(size)) for s in seen])
            weights /= weights.sum()
            mixed[t, h * size : (h + 1) * size] = sum(w * v[s] for w, s in zip(weights, seen, strict=True))
    x = x + mixed @ p["attn"]["out"]["kernel"] + p["attn"]["out"]["bias"]
    y = np.stack([norm_by_hand(row, p["norm2"]) for row in x])
    hidden = y @ p["mlp"]["fc1"]["kernel"] + p["mlp"]["fc1"]["bias"]
    hidden = hidden / (1 + np.exp(-1.702 * hidden))
    return x + hidden @ p["mlp"]["fc2"]["kernel"] + p["mlp"]["fc2"]["bias"]


@pytest.mark.parametrize(("causal", "masked"), [(False, False), (True, False), (False, True), (True, True)])
def test_block_equals_plain_loops(block, causal, masked):
    model, params, extra = block
    mask = np.array([[1, 1, 1, 1, 1], [1, 1, 0, 1, 0]], bool) if masked else np.ones((2, TOKENS), bool)

    def run(module, x, *, train, key):
        return module(x, jnp.asarray(mask) if masked else None, causal=causal)

    out, _ = jax.jit(lambda p: model.apply(p, extra, X, method=run))(params)
    expected = np.stack([block_by_hand(X[i], params, causal=causal, mask=mask[i]) for i in range(2)])
    np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)


def test_activations():
    x = np.linspace(-4, 4, 9, dtype=np.float32)
    exact = [0.5 * v * (1 + math.erf(v / math.sqrt(2))) for v in x]
    tanh = [0.5 * v * (1 + math.tanh(math.sqrt(2 / math.pi) * (v + 0.044715 * v**3))) for v in x]
    quick = [v / (1 + math.exp(-1.702 * v)) for v in x]
    for name, expected in (("gelu", exact), ("gelu_tanh", tanh), ("quick_gelu", quick)):
        np.testing.assert_allclose(ACTIVATIONS[name](x), expected, rtol=1e-5, atol=1e-6, err_msg=name)


def test_layer_norm_is_exact_far_from_zero_even_in_bfloat16():
    model = functional(lambda rngs: LayerNorm(8, eps=1e-6, dtype=float_dtype("bfloat16"), rngs=rngs))
    params, extra = model.init(jax.random.key(0))
    x = jnp.asarray(1000.0 + np.arange(8) / 8, jnp.float32)[None]
    out, _ = model.apply(params, extra, x, method=lambda m, x, train, key: m(x))
    assert out.dtype == jnp.bfloat16
    expected = (np.arange(8) - 3.5) / np.sqrt(5.25 + 64e-6)
    np.testing.assert_allclose(out[0].astype(jnp.float32), expected, rtol=1e-2)


def test_dropout_and_drop_path_keep_the_mean():
    ones = jnp.ones((4000, 3))
    dropped = np.asarray(dropout(ones, 0.25, key=jax.random.key(0), train=True))
    assert set(np.unique(dropped.round(5))) == {0.0, np.float32(1 / 0.75).round(5)}
    assert abs(dropped.mean() - 1) < 0.02
    paths = np.asarray(drop_path(ones, 0.25, key=jax.random.key(0)))
    assert np.all(paths == paths[:, :1])  # all of an example or nothing
    assert abs(paths.mean() - 1) < 0.03
    assert dropout(ones, 0.25, key=None, train=False) is ones
    with pytest.raises(InputError, match="pass key="):
        dropout(ones, 0.25, key=None, train=True)


TINY = {"image_size": 8, "patch": 4, "width": 16, "depth": 2, "heads": 2}
RANDOM = {"dropout": 0.1, "stochastic_depth": 0.2}
IMAGES = np.random.default_rng(1).normal(size=(3, 8, 8, 3)).astype(np.float32)


def loss_and_gradient(params, extra, key, **options):
    model = functional(vit(**TINY, **options))

    def loss(params):
        return jnp.sum(model.apply(params, extra, IMAGES, key=key, train=True)[0].astype(jnp.float32) ** 3)

    return jax.jit(jax.value_and_grad(loss))(params)


@pytest.fixture(scope="module")
def tiny(drawn):
    return drawn(vit(**TINY))[1:]


@pytest.fixture(scope="module")
def expected(tiny):
    return jax.tree.map(np.asarray, loss_and_gradient(*tiny, jax.random.key(1), **RANDOM))


@pytest.mark.parametrize("remat", [True, "dots"])
def test_remat_changes_neither_values_nor_gradients(tiny, expected, remat):
    saved = loss_and_gradient(*tiny, jax.random.key(1), remat=remat, **RANDOM)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), expected, saved)


def test_scan_over_depth_changes_neither_values_nor_gradients(tiny, expected):
    params, extra = tiny
    options = RANDOM | {"scan_layers": True, "remat": True}
    scanned = loss_and_gradient(stack_blocks(params), extra, jax.random.key(1), **options)
    stacked = (expected[0], stack_blocks(expected[1]))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), stacked, scanned)


def test_bfloat16_computes_in_bfloat16_and_learns_in_float32(tiny):
    params, extra = tiny
    model = functional(vit(**TINY, dtype="bfloat16"))
    abstract = jax.eval_shape(model.init, jax.random.key(0))
    assert {leaf.dtype for leaf in jax.tree.leaves(abstract)} == {jnp.dtype("float32")}
    # JAX's own attention promotes implicitly in its backward pass, which the strict session would refuse.
    with jax.numpy_dtype_promotion("standard"):
        forward = jax.jit(lambda p: model.apply(p, extra, IMAGES)[0]).trace(params)
        half = forward.lower().compile()(params)
        gradient = loss_and_gradient(params, extra, None, dtype="bfloat16")[1]
    assert half.dtype == jnp.bfloat16
    assert {leaf.dtype for leaf in jax.tree.leaves(gradient)} == {jnp.dtype("float32")}
    full, _ = jax.jit(functional(vit(**TINY)).apply)(params, extra, IMAGES)
    np.testing.assert_allclose(half.astype(jnp.float32), full, rtol=0, atol=0.15)
    assert (
        np.abs(np.asarray(half.astype(jnp.float32)) - np.asarray(full)).max() > 1e-5
    )  # it really was another precision
    products = [eqn for eqn in equations(forward.jaxpr.jaxpr) if eqn.primitive.name == "dot_general"]
    assert len(products) >= 2 * 6
    assert {variable.aval.dtype for eqn in products for variable in eqn.invars} == {jnp.dtype("bfloat16")}


def equations(jaxpr):
    for eqn in jaxpr.eqns:
        yield eqn
        for inner in eqn.params.values():
            if hasattr(inner, "jaxpr") or hasattr(inner, "eqns"):
                yield from equations(getattr(inner, "jaxpr", inner))


def test_stochastic_depth_grows_with_depth_and_needs_a_key(tiny):
    model = functional(vit(**TINY, stochastic_depth=0.5))
    params, extra = tiny
    with pytest.raises(InputError, match="stochastic depth"):
        model.apply(params, extra, IMAGES, train=True)
    run = jax.jit(model.apply, static_argnames="train")
    evaluated = run(params, extra, IMAGES)[0]
    np.testing.assert_array_equal(evaluated, jax.jit(functional(vit(**TINY)).apply)(params, extra, IMAGES)[0])
    trained = run(params, extra, IMAGES, train=True, key=jax.random.key(0))[0]
    assert np.abs(trained - evaluated).max() > 1e-4


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"heads": 5}, "multiple of heads"),
        ({"depth": 0}, "depth=0 must be at least 1"),
        ({"dropout": 1.0}, r"dropout=1.0 must be in \[0, 1\)"),
        ({"activation": "gelu_new"}, "activation='gelu_new' is unknown; choose one of 'gelu'"),
        ({"remat": "some"}, "remat='some' is unknown"),
        ({"dtype": "int8"}, "'float32', 'bfloat16' or 'float16'"),
        ({"dtype": "bfloat"}, "'float32', 'bfloat16' or 'float16'"),
    ],
)
def test_bad_options_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        vit(**(TINY | options))
