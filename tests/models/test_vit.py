"""The vision transformer: sizes, positions, pooling, patches."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.models import count, flatten, functional, map_with_path, sincos_2d, vit
from mixcon.models.vit import keep_patches

TINY = {"image_size": (8, 12), "patch": 4, "width": 16, "depth": 1, "heads": 2}
IMAGES = np.random.default_rng(1).normal(size=(3, 8, 12, 3)).astype(np.float32)


@pytest.fixture(scope="module")
def made(drawn):
    """made(**options) -> run(params, images, ...), params."""

    def make(**options):
        model, params, extra = drawn(vit(**(TINY | options)))
        run = jax.jit(model.apply, static_argnames=("train", "method"))
        return lambda params, *inputs, **kw: run(params, extra, *inputs, **kw)[0], params

    return make


def parameters(make):
    return count(jax.eval_shape(functional(make).init, jax.random.key(0))[0])


@pytest.mark.parametrize(  # with a 1000-class head at 224 pixels: the counts of torchvision and timm
    ("size", "expected"),
    [
        ("Ti/16", 5_717_416),
        ("S/16", 22_050_664),
        ("B/16", 86_567_656),
        ("B/32", 88_224_232),
        ("L/16", 304_326_632),
        ("H/14", 632_045_800),
    ],
)
def test_named_sizes_have_the_published_number_of_parameters(size, expected):
    scan = {"scan_layers": size != "Ti/16"}  # the same parameters, sooner traced
    assert parameters(vit(size, num_classes=1000, **scan)) == expected


def test_giant_has_a_billion_parameters():
    assert round(parameters(vit("g/14", num_classes=1000, scan_layers=True)) / 1e6, 1) == 1012.6


def test_sincos_positions():
    table = sincos_2d((2, 3), 8)
    assert table.shape == (6, 8)
    assert table.dtype == np.float32
    for y in range(2):
        for x in range(3):
            w = [1.0, 1e-4]
            expected = [f(v * wi) for v in (x, y) for f in (np.sin, np.cos) for wi in w]
            np.testing.assert_allclose(table[3 * y + x], expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("pool", "positions"), [("cls", "learned"), ("mean", "sincos2d"), ("map", "learned")])
def test_pools_and_positions(made, pool, positions):
    run, params = made(pool=pool, positions=positions)
    names = flatten(params)
    assert ("pos_embed" in names) == (positions == "learned")
    assert ("cls_token" in names) == (pool == "cls")
    pooled, tokens = run(params, IMAGES), run(params, IMAGES, method="tokens")
    assert pooled.shape == (3, 16)
    assert tokens.shape == (3, 6 + (pool == "cls"), 16)
    if pool != "map":
        expected = tokens[:, 0] if pool == "cls" else tokens.mean(1)
        np.testing.assert_allclose(pooled, expected, rtol=1e-5, atol=1e-6)
    moved = run(params, np.roll(IMAGES, 4, axis=2))
    assert np.abs(moved - pooled).max() > 1e-4  # positions matter


def test_patch_embedding_is_the_convolution(made):
    """With the blocks silenced the tokens are the normalised embedded patches."""
    run, params = made(pool="mean")
    silent = map_with_path(lambda path, x: 0 * x if "attn/out" in path or "fc2" in path else x, params)
    kernel = params["patch_embed"]["kernel"].reshape(4, 4, 3, 16)
    layout = ("NHWC", "HWIO", "NHWC")
    patches = jax.lax.conv_general_dilated(IMAGES, kernel, (4, 4), "VALID", dimension_numbers=layout)
    x = np.asarray(patches).reshape(3, 6, 16) + params["patch_embed"]["bias"] + params["pos_embed"]
    expected = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    expected = expected * params["norm"]["scale"] + params["norm"]["bias"]
    np.testing.assert_allclose(run(silent, IMAGES, method="tokens"), expected, rtol=1e-4, atol=1e-5)


def test_patch_dropout_keeps_a_fixed_number_uniformly_at_random():
    x = jnp.broadcast_to(jnp.arange(8.0)[None, :, None], (4000, 8, 1))
    kept = np.asarray(keep_patches(x, 3, key=jax.random.key(0)))[:, :, 0]
    assert kept.shape == (4000, 3)
    assert all(len(set(row)) == 3 for row in kept[:100])
    share = np.bincount(kept.astype(int).ravel(), minlength=8) / 4000
    np.testing.assert_allclose(share, 3 / 8, atol=0.04)


def test_patch_dropout_acts_in_training_only_and_is_decided_by_the_key(made):
    run, params = made(patch_dropout=0.5)

    def tokens(seed, train):
        return run(params, IMAGES, train=train, key=jax.random.key(seed), method="tokens")

    first, again, other = (np.asarray(tokens(seed, True)) for seed in (0, 0, 1))
    assert first.shape == (3, 4, 16)  # class token and 3 of 6 patches
    assert tokens(0, False).shape == (3, 7, 16)
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - other).max() > 1e-3
    with pytest.raises(InputError, match="patch_dropout"):
        run(params, IMAGES, train=True)


def test_numbers_take_precedence_over_the_name():
    custom = jax.eval_shape(functional(vit("S/16", depth=2, patch=8, image_size=32)).init, jax.random.key(0))[0]
    names = flatten(custom)
    assert names["pos_embed"].shape == (17, 384)
    assert sum(name.endswith("attn/qkv/kernel") for name in names) == 2
    wider = flatten(jax.eval_shape(functional(vit("S/16", width=128, depth=1)).init, jax.random.key(0))[0])
    assert wider["blocks/0/mlp/fc1/kernel"].shape == (128, 512)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"size": "XL/16"}, "size='XL' is unknown; choose one of 'Ti'"),
        ({"size": "B/x"}, "not of the form 'B/16'"),
        ({"size": "B"}, "patch side"),
        ({"patch": 16}, "Give size="),
        ({"size": "Ti/16", "image_size": 40}, "positive multiple of patch=16"),
        ({"size": "Ti/16", "pool": "max"}, "pool='max' is unknown"),
        ({"size": "Ti/16", "positions": "rope"}, "positions='rope' is unknown"),
        ({"size": "Ti/16", "patch_dropout": 1.0}, "patch_dropout=1.0 must be in"),
        ({"width": 18, "heads": 2, "depth": 1, "patch": 16, "positions": "sincos2d"}, "multiple of 4"),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        vit(**options)


def test_bad_images_are_refused(made):
    run, params = made()
    with pytest.raises(InputError, match=r"got \(3, 12, 8, 3\): its image_size and the size of the data"):
        run(params, IMAGES.swapaxes(1, 2))
    with pytest.raises(InputError, match="uint8"):
        run(params, IMAGES.astype(np.uint8))


def test_attention_is_the_softmax_of_the_scores_and_the_output_is_unchanged(drawn):
    model, params, extra = drawn(vit(width=16, depth=2, heads=2, patch=4, image_size=8, num_classes=3))
    images = np.random.default_rng(0).normal(size=(2, 8, 8, 3)).astype(np.float32)
    (logits, maps), _ = model.apply(params, extra, images, method="with_attention")
    np.testing.assert_allclose(logits, model.apply(params, extra, images)[0], rtol=1e-5, atol=1e-6)
    assert maps.shape == (2, 2, 2, 5, 5)
    np.testing.assert_allclose(maps.sum(-1), 1, rtol=1e-5)

    entering = {}

    def keep(place, x):
        entering[place] = np.asarray(x)
        return x

    model.apply(params, extra, images, method=lambda m, x, train, key: m(x, train=train, key=key, hook=keep))
    block, x = params["blocks"]["1"], entering["block1"]
    norm = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    norm = norm * block["norm1"]["scale"] + block["norm1"]["bias"]
    qkv = norm @ block["attn"]["qkv"]["kernel"] + block["attn"]["qkv"]["bias"]
    for head in range(2):
        q, k = (qkv[..., head * 24 + part * 8 : head * 24 + part * 8 + 8] for part in (0, 1))
        scores = np.exp(q @ k.transpose(0, 2, 1) / 8**0.5)
        np.testing.assert_allclose(maps[1, :, head], scores / scores.sum(-1, keepdims=True), rtol=1e-4)


def test_a_scanned_tower_cannot_be_looked_into(drawn):
    model, params, extra = drawn(vit(width=16, depth=2, heads=2, patch=4, image_size=8, scan_layers=True))
    with pytest.raises(InputError, match="scan_layers"):
        model.apply(params, extra, np.zeros((1, 8, 8, 3), np.float32), method="with_attention")
