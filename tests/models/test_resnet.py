"""Residual networks: sizes, batch statistics, and the same statistics however the batch is sharded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mixcon.errors import InputError
from mixcon.models import count, flatten, functional, modified_resnet, resnet

IMAGES = np.random.default_rng(0).normal(size=(8, 8, 8, 3)).astype(np.float32) + 0.5


def shapes(make):
    return jax.eval_shape(functional(make).init, jax.random.key(0))


@pytest.mark.parametrize(  # torchvision's counts, with the 1000-class layer
    ("depth", "expected"),
    [
        (18, 11_689_512),
        (34, 21_797_672),
        (50, 25_557_032),
        pytest.param(101, 44_549_160, marks=pytest.mark.slow),
        pytest.param(152, 60_192_808, marks=pytest.mark.slow),
    ],
)
def test_depths_have_the_published_number_of_parameters(depth, expected):
    assert count(shapes(resnet(depth, num_classes=1000))[0]) == expected


@pytest.fixture(scope="module")
def small(drawn):
    return drawn(resnet(18, stem="cifar", width=4))


@pytest.fixture(scope="module")
def train(small):
    model, _, _ = small

    @jax.jit
    def run(params, extra, images):
        def loss(params):
            features, new = model.apply(params, extra, images, train=True)
            return jnp.sum(features**2), (features, new)

        (_, (features, new)), gradient = jax.value_and_grad(loss, has_aux=True)(params)
        return features, new, gradient

    return run


def test_training_normalises_by_the_batch_and_moves_the_running_statistics(small, train):
    _, params, extra = small
    _, new, _ = train(params, extra, IMAGES)
    kernel = params["stem_conv"]["kernel"]
    x = np.pad(IMAGES, ((0, 0), (1, 1), (1, 1), (0, 0)))
    conv = sum(np.einsum("bhwc,cd->bhwd", x[:, i : i + 8, j : j + 8], kernel[i, j]) for i in range(3) for j in range(3))
    for name, batch in (("mean", conv.mean((0, 1, 2))), ("var", conv.var((0, 1, 2)))):
        expected = 0.9 * extra["stem_norm"][name] + 0.1 * batch
        np.testing.assert_allclose(new["stem_norm"][name], expected, rtol=1e-4, atol=1e-5)
    assert all(np.any(a != b) for a, b in zip(jax.tree.leaves(new), jax.tree.leaves(extra), strict=True))


@pytest.mark.parametrize("devices", [8])
def test_a_sharded_batch_has_the_statistics_of_the_whole(small, train, devices):
    _, params, extra = small
    images = IMAGES * np.arange(1, 9, dtype=np.float32)[:, None, None, None]  # every device sees another distribution
    mesh = Mesh(np.array(jax.devices()[:devices]), ("data",))
    everywhere, split = NamedSharding(mesh, P()), NamedSharding(mesh, P("data"))
    sharded = train(*jax.device_put((params, extra), everywhere), jax.device_put(images, split))
    single = train(params, extra, images)
    for whole, parts in zip(single, sharded, strict=True):
        scale = max(float(np.abs(leaf).max()) for leaf in jax.tree.leaves(whole))
        jax.tree.map(lambda a, b, s=scale: np.testing.assert_allclose(a / s, b / s, rtol=0, atol=2e-5), whole, parts)


def test_evaluation_uses_the_running_statistics(small):
    model, params, extra = small
    run = jax.jit(model.apply)
    together, same = run(params, extra, IMAGES)
    alone, _ = run(params, extra, IMAGES[:1])
    np.testing.assert_allclose(together[:1], alone, rtol=1e-4, atol=1e-4)
    assert jax.tree.all(jax.tree.map(lambda a, b: bool(np.array_equal(a, b)), same, extra))


def test_zero_initialised_blocks_start_as_the_identity():
    zero, plain = (jax.eval_shape(functional(resnet(18, zero_init=z, width=4)).init, jax.random.key(0)) for z in (1, 0))
    assert jax.tree.structure(zero) == jax.tree.structure(plain)
    model = functional(resnet(50, width=4))
    scales = jax.jit(lambda key: {k: v for k, v in flatten(model.init(key)[0]).items() if k.endswith("scale")})
    for path, scale in scales(jax.random.key(0)).items():
        assert np.all(np.asarray(scale) == (0.0 if path.endswith("norms/2/scale") else 1.0)), path


@pytest.mark.parametrize(("stem", "side"), [("cifar", 4), ("imagenet", 1)])
def test_stems(stem, side):
    model = functional(resnet(18, stem=stem, width=4))
    params, extra = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    run = lambda p, e, x: model.apply(p, e, x, method="feature_map")[0]  # noqa: E731
    assert jax.eval_shape(run, params, extra, images).shape == (2, side, side, 32)


def test_bfloat16_keeps_parameters_and_statistics_in_float32():
    model = functional(resnet(50, width=4, dtype="bfloat16", num_classes=5))
    params, extra = jax.eval_shape(model.init, jax.random.key(0))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    out, new = jax.eval_shape(lambda p, e, x: model.apply(p, e, x, train=True), params, extra, images)
    assert (out.shape, out.dtype) == ((2, 5), jnp.bfloat16)
    assert {leaf.dtype for leaf in jax.tree.leaves((params, extra, new))} == {jnp.dtype("float32")}


def test_modified_resnet_sizes():
    params, extra = shapes(modified_resnet("RN50"))
    names = flatten(params)
    assert names["pos_embed"].shape == (50, 2048)
    assert names["pool/out/kernel"].shape == (2048, 1024)
    assert count(params) == 38_316_896  # 102,007,137 of the whole CLIP less its text tower and scale
    assert "stages/3/2/norms/2/mean" in flatten(extra)


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (resnet, {"depth": 51}, "depth=51 is unknown; choose one of 18"),
        (resnet, {"stem": "mnist"}, "stem='mnist' is unknown"),
        (resnet, {"num_classes": -1}, "num_classes at least 0"),
        (modified_resnet, {"size": "RN51"}, "size='RN51' is unknown"),
        (modified_resnet, {"layers": (1, 1, 1, 1)}, "Give size="),
        (modified_resnet, {"size": "RN50", "image_size": 225}, "positive multiple of 32"),
        (modified_resnet, {"size": "RN50", "heads": 7}, "heads=7 must divide"),
    ],
)
def test_bad_arguments_are_refused(make, options, message):
    with pytest.raises(InputError, match=message):
        make(**options)


def test_bad_images_are_refused(small):
    model, params, extra = small
    with pytest.raises(InputError, match="uint8"):
        model.apply(params, extra, IMAGES.astype(np.uint8))
    with pytest.raises(InputError, match=r"\[batch, height, width, 3\]"):
        model.apply(params, extra, IMAGES[..., :1])


def test_resnext_has_the_published_number_of_parameters():
    assert count(shapes(resnet(50, groups=32, group_width=4, num_classes=1000))[0]) == 25_028_904
    for bad in (dict(depth=18, groups=32, group_width=4), dict(depth=50, width=8, groups=32, group_width=4)):
        with pytest.raises(InputError, match="groups"):
            resnet(**bad)


def test_a_hook_sees_every_stage_and_what_it_returns_goes_on(small):
    model, params, extra = small
    seen = {}

    def double(place, x):
        seen[place] = x.shape
        return 2 * x if place == "stage4" else x

    def run(module, images, *, train, key, hook):
        return module(images, train=train, key=key, hook=hook)

    plain, _ = model.apply(params, extra, IMAGES)
    doubled, _ = model.apply(params, extra, IMAGES, method=lambda *a, **k: run(*a, **k, hook=double))
    np.testing.assert_allclose(doubled, 2 * plain, rtol=1e-5)
    assert seen == {"stage1": (8, 8, 8, 4), "stage2": (8, 4, 4, 8), "stage3": (8, 2, 2, 16), "stage4": (8, 1, 1, 32)}
