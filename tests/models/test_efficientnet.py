"""EfficientNet: published sizes, `transformers`' model, the global batch's statistics, and what is refused."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from compiler import USUAL
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from mixcon.errors import InputError
from mixcon.models import count, efficientnet, flatten, functional, map_with_path
from mixcon.models.efficientnet import MBConv, depthwise_conv, depthwise_sum

KEY = jax.random.key(0)
TINY = {"size": None, "width_factor": 0.5, "depth_factor": 0.3}  # every stage widens, as in all published sizes
PARAMETERS = {  # of the published networks with their classifier of 1,000 classes
    "B0": 5_288_548,
    "B1": 7_794_184,
    "B2": 9_109_994,
    "B3": 12_233_232,
    "B4": 19_341_616,
    "B5": 30_389_784,
    "B6": 43_040_704,
    "B7": 66_347_960,
    "L2": 480_309_308,
}


@pytest.mark.parametrize(
    "size", [pytest.param(size, marks=[pytest.mark.slow] * (size not in ("B0", "B2"))) for size in PARAMETERS]
)
def test_sizes_have_the_published_number_of_parameters(size):
    params, extra = jax.eval_shape(functional(efficientnet(size, num_classes=1000, scan_layers=True)).init, KEY)
    assert count(params) == PARAMETERS[size]
    norms = [leaf for path, leaf in flatten(params).items() if path.endswith("norm/scale")]
    assert count(extra) == 2 * count(norms)


@pytest.fixture(scope="module")
def tiny(drawn):
    _, params, extra = drawn(efficientnet(**TINY))
    return params, extra


def names(blocks_of_stage):
    """Our path -> `transformers`' name and axes, for every array."""
    table = {"stem_conv/kernel": ("embeddings.convolution.weight", (2, 3, 1, 0))}

    def batch_norm(ours, theirs):
        pairs = (("scale", "weight"), ("bias", "bias"), ("mean", "running_mean"), ("var", "running_var"))
        table.update({f"{ours}/{a}": (f"{theirs}.{b}", None) for a, b in pairs})

    def linear(ours, theirs):
        table[f"{ours}/kernel"] = (f"{theirs}.weight", (2, 3, 1, 0))
        table[f"{ours}/bias"] = (f"{theirs}.bias", None)

    batch_norm("stem_norm", "embeddings.batchnorm")
    number = 0
    for stage, blocks in enumerate(blocks_of_stage):
        for block in range(blocks):
            ours, theirs = f"stages/{stage}/{block}", f"encoder.blocks.{number}"
            linear(f"{ours}/expand_conv", f"{theirs}.expansion.expand_conv")
            batch_norm(f"{ours}/expand_norm", f"{theirs}.expansion.expand_bn")
            table[f"{ours}/depthwise_conv/kernel"] = (f"{theirs}.depthwise_conv.depthwise_conv.weight", (2, 3, 1, 0))
            batch_norm(f"{ours}/depthwise_norm", f"{theirs}.depthwise_conv.depthwise_norm")
            linear(f"{ours}/squeeze", f"{theirs}.squeeze_excite.reduce")
            linear(f"{ours}/excite", f"{theirs}.squeeze_excite.expand")
            linear(f"{ours}/project_conv", f"{theirs}.projection.project_conv")
            batch_norm(f"{ours}/project_norm", f"{theirs}.projection.project_bn")
            number += 1
    linear("top_conv", "encoder.top_conv")
    batch_norm("top_norm", "encoder.top_bn")
    return table


@pytest.mark.parametrize("train", [pytest.param(False, marks=pytest.mark.slow), True])
def test_equals_transformers(tiny, train):
    torch = pytest.importorskip("torch", reason="compared with transformers' EfficientNet, which needs torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.EfficientNetConfig(
        width_coefficient=0.5, depth_coefficient=0.3, hidden_dim=640, drop_connect_rate=0.0
    )
    theirs = transformers.EfficientNetModel(config).train(train)
    params, extra = tiny
    flat = {**flatten(params), **flatten(extra)}
    blocks = [sum(f"stages/{i}/{j}/squeeze/bias" in flat for j in range(9)) for i in range(7)]
    state = theirs.state_dict()
    for path, (name, axes) in names(blocks).items():
        if path not in flat:
            continue  # biases that convolutions do not have, the widening of blocks that do not widen
        array = flat[path]
        if axes is not None:
            array = array.reshape((1, 1, *array.shape) if array.ndim == 2 else array.shape).transpose(3, 2, 0, 1)
        state[name] = torch.tensor(np.ascontiguousarray(array.reshape(state[name].shape)))
    theirs.load_state_dict(state)
    loaded = {name for path, (name, _) in names(blocks).items() if path in flat}
    assert loaded == {name for name in state if not name.endswith("num_batches_tracked")}

    images = np.random.default_rng(1).normal(size=(3, 64, 64, 3)).astype(np.float32)
    with torch.no_grad():
        expected = theirs(torch.tensor(images.transpose(0, 3, 1, 2)))
    model = functional(efficientnet(**TINY, stochastic_depth=0.0, depthwise="sum" if train else "conv"))
    got, _ = jax.jit(model.apply, static_argnames="train")(params, extra, images, train=train)
    want = expected.pooler_output.numpy().reshape(3, -1)
    assert np.abs(got - want).max() < 2e-5 * np.abs(want).max()


@pytest.mark.parametrize(("side", "stride", "extent"), [(3, 1, 7), (3, 2, 8), (3, 2, 7), (5, 2, 10), (5, 2, 9)])
def test_a_sum_of_shifted_products_is_the_convolution(side, stride, extent):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, extent, extent + 1, 3)).astype(np.float32)
    kernel = rng.normal(size=(side, side, 1, 3)).astype(np.float32)
    np.testing.assert_allclose(
        depthwise_sum(x, kernel, stride), depthwise_conv(x, kernel, stride), rtol=0, atol=2e-6 * side**2
    )


def test_statistics_are_of_the_global_batch(drawn):
    model, params, extra = drawn(
        efficientnet(**TINY, stochastic_depth=0.0, top=False, depthwise="sum", norm_momentum=0.75)
    )
    images = np.random.default_rng(1).normal(size=(8, 16, 16, 3)).astype(np.float32)
    apply = jax.jit(lambda extra, x: model.apply(params, extra, x, train=True))
    alone, statistics = apply(extra, images)
    got, moved = apply(extra, jax.device_put(images, NamedSharding(jax.make_mesh((8,), ("data",)), P("data"))))
    np.testing.assert_allclose(got, alone, rtol=0, atol=1e-4 * float(jnp.abs(alone).max()))
    for a, b in zip(jax.tree.leaves(moved), jax.tree.leaves(statistics), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    _, again = apply(statistics, images)
    first, then, last = (flatten(each)["stem_norm/mean"] for each in (extra, statistics, again))
    assert float(jnp.abs(then - first).max()) > 0
    np.testing.assert_allclose(last - then, 0.75 * (then - first), rtol=1e-3, atol=1e-6)  # the same batch again


def test_stochastic_depth_leaves_out_whole_branches_of_an_example(drawn):
    block, params, extra = drawn(functools.partial(_residual_block, width=8))
    x = np.random.default_rng(1).normal(size=(64, 4, 4, 8)).astype(np.float32)

    def apply(rate, key):
        run = lambda net, x, train, key: net(x, train=train, key=key, drop_rate=rate)  # noqa: E731
        return np.asarray(block.apply(params, jax.tree.map(jnp.asarray, extra), x, train=True, key=key, method=run)[0])

    branch, kept = apply(None, None) - x, apply(0.75, jax.random.key(0)) - x
    gone = np.abs(kept).max(axis=(1, 2, 3)) == 0
    assert 32 < gone.sum() < 64
    np.testing.assert_allclose(kept[~gone], 4 * branch[~gone], rtol=1e-4, atol=1e-4)
    with pytest.raises(InputError, match="stochastic depth"):
        apply(0.75, None)


def _residual_block(rngs, *, width):
    return MBConv(
        width, width, side=3, stride=1, expansion=2, form="conv", momentum=0.99, dtype=np.dtype("float32"), rngs=rngs
    )


@pytest.mark.slow
def test_stacked_blocks_are_the_same_network_and_move_their_statistics(drawn):
    options = {**TINY, "depth_factor": 0.7, "top": False, "depthwise": "sum", "stochastic_depth": 0.5}
    model, params, extra = drawn(efficientnet(**options))
    stacked, stacked_params, stacked_extra = drawn(efficientnet(**options, scan_layers=True, remat=True))

    def restack(tree, like):
        """Blocks 1, 2, ... of a stage along the first axis of block 1."""
        flat = flatten(tree)

        def leaf(path, want):
            stage, found = re.fullmatch(r"stages/(\d)/1/(.*)", path), flat.get(path)
            if stage is None or found.shape == want.shape:
                return found
            return np.stack([flat[f"stages/{stage[1]}/{i + 1}/{stage[2]}"] for i in range(len(want))])

        return map_with_path(leaf, like)

    images = np.random.default_rng(1).normal(size=(4, 16, 16, 3)).astype(np.float32)

    def run(model):
        """As users' programs are compiled: statistics of four images make rounding large otherwise."""
        return jax.jit(lambda *x: model.apply(*x, train=True, key=jax.random.key(3)), compiler_options=USUAL)

    want, moved = run(model)(params, extra, images)
    got, stacked_moved = run(stacked)(restack(params, stacked_params), restack(extra, stacked_extra), images)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-4 * float(jnp.abs(want).max()))
    for a, b in zip(jax.tree.leaves(stacked_moved), jax.tree.leaves(restack(moved, stacked_extra)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_every_stage_is_seen_and_small_images_keep_their_size(tiny):
    params, extra = tiny
    shapes = {}

    def hook(place, x):
        shapes[place] = x.shape[1:3]
        return x

    model = functional(efficientnet(**TINY, stem_stride=1))
    images = jax.ShapeDtypeStruct((2, 32, 32, 3), jnp.float32)
    out, _ = jax.eval_shape(
        lambda p, e, x: model.apply(p, e, x, method=lambda net, x, train, key: net(x, hook=hook)), params, extra, images
    )
    assert out.shape == (2, 640)
    assert [shapes[f"stage{i}"] for i in range(1, 8)] == [(s, s) for s in (32, 16, 8, 4, 4, 2, 2)]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"size": "B9"}, "size='B9'"),
        ({"size": None}, "width_factor"),
        ({"size": None, "width_factor": 0.0, "depth_factor": 1.0}, "positive"),
        ({"dropout": 1.0}, "dropout"),
        ({"stochastic_depth": -0.1}, "stochastic_depth"),
        ({"depthwise": "fft"}, "depthwise"),
        ({"remat": "some"}, "remat"),
        ({"num_classes": -1}, "num_classes"),
    ],
)
def test_mistakes_are_refused_in_words(arguments, words):
    with pytest.raises(InputError, match=words):
        efficientnet(**arguments)


def test_images_must_be_floats(tiny):
    model = functional(efficientnet(**TINY))
    with pytest.raises(InputError, match="normalised floats"):
        model.apply(*tiny, np.zeros((1, 32, 32, 3), np.uint8))
