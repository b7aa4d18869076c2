"""Small convolutional nets and classifiers with several heads: what they compute, and the maps they show."""

import jax
import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.models import build, classifier, conv_net, count, resnet, vit

IMAGES = np.random.default_rng(0).normal(size=(4, 8, 8, 1)).astype(np.float32)


def run(made, images, at, train=False):
    model, params, extra = made

    @jax.jit
    def apply(params, extra, images):
        return model.apply(
            params, extra, images, train=train, method=lambda m, x, train, key: m.with_map(x, at=at, train=train)
        )

    return apply(params, extra, images)


@pytest.fixture(scope="module")
def made(drawn):
    return drawn(classifier(conv_net((2, 3), strides=(1, 2), channels=1), num_classes=5, heads=("one", "mix")))


def test_a_conv_net_by_plain_loops(made):
    """Convolution, statistics of the batch, relu, mean over places, two heads."""
    _, params, _ = made
    x = IMAGES.astype(np.float64)
    for i, stride in enumerate((1, 2)):
        kernel = params["backbone"]["convs"][str(i)]["kernel"]
        padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
        side = x.shape[1] // stride
        y = np.zeros((4, side, side, kernel.shape[-1]))
        for r in range(side):
            for c in range(side):
                window = padded[:, r * stride : r * stride + 3, c * stride : c * stride + 3]
                y[:, r, c] = np.einsum("bijc,ijco->bo", window, kernel)
        norm = params["backbone"]["norms"][str(i)]
        y = (y - y.mean((0, 1, 2))) / np.sqrt(y.var((0, 1, 2)) + 1e-5) * norm["scale"] + norm["bias"]
        x = np.maximum(y, 0)
    (logits, map_), _ = run(made, IMAGES, "stage2", train=True)
    np.testing.assert_allclose(map_, x, rtol=1e-4, atol=1e-5)
    for name in ("one", "mix"):
        head = params["heads"][name]
        np.testing.assert_allclose(logits[name], x.mean((1, 2)) @ head["kernel"] + head["bias"], rtol=1e-4, atol=1e-5)


def test_statistics_move_only_when_training(made):
    _, after = run(made, IMAGES, "stage1")
    _, moved = run(made, IMAGES, "stage1", train=True)
    first = ["backbone", "norms", "0", "mean"]
    before = made[2]
    for key in first:
        before, after, moved = before[key], after[key], moved[key]
    np.testing.assert_array_equal(before, after)
    assert np.abs(np.asarray(moved) - before).max() > 0


def test_maps_of_residual_networks_and_of_transformers(drawn):
    colour = np.repeat(IMAGES, 3, axis=-1)
    net = drawn(classifier(resnet(18, stem="cifar", width=4), num_classes=5))
    assert run(net, colour, "stage3")[0][1].shape == (4, 2, 2, 16)
    tower = drawn(classifier(vit(width=16, depth=2, heads=2, patch=2, image_size=8), num_classes=5))
    assert run(tower, colour, "block1")[0][1].shape == (4, 4, 4, 16)  # without the class token
    with pytest.raises(InputError, match="it has block0, block1"):
        run(tower, colour, "block2")


def test_described_by_names(drawn):
    spec = {"name": "classifier", "num_classes": 3, "backbone": {"name": "conv_net", "widths": (4, 8)}}
    _, params, extra = drawn(build(spec))
    assert count(params) == 3 * 9 * 4 + 4 * 9 * 8 + 2 * (4 + 8) + 8 * 3 + 3
    assert sorted(extra["backbone"]["norms"]) == ["0", "1"]


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: conv_net(()),
        lambda: conv_net((4, 8), strides=(1,)),
        lambda: classifier(conv_net((4,)), num_classes=0),
        lambda: classifier(conv_net((4,)), num_classes=2, heads=("one", "one")),
    ],
)
def test_what_makes_no_network_is_refused(wrong):
    with pytest.raises(InputError):
        wrong()
