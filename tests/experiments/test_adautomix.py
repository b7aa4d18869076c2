"""AdAutoMix's experiment: full-size forms trace, players have their own rates, what makes no game is refused."""

import jax
import numpy as np
import pytest

from mixcon import config as configs
from mixcon.data import labelled
from mixcon.data.sources import Arrays
from mixcon.errors import InputError
from mixcon.train import loop
from mixcon.train import mesh as meshes

TINY = (
    "batch_size=10",
    "data.train.train_size=40",
    "data.test.train_size=1700",
    "model.backbone.widths=(2, 4, 4)",
)


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def experiment(variant, *overrides):
    config = configs.load(f"configs/adautomix.py:{variant}", [f"--config.{each}" for each in overrides])
    return loop.build(config, None), config


def traced(variant, *overrides):
    """Shapes of the state before and after a step on a mesh of four."""
    mesh = meshes.make_mesh(data=4, model=1)
    with jax.set_mesh(mesh):
        made, config = experiment(variant, *overrides)
        shapes, _ = loop.state_layout(made, config, mesh)
        after, metrics = jax.eval_shape(made.step, shapes, loop.device_part(next(made.batches())))
    assert jax.tree.structure(after) == jax.tree.structure(shapes)
    assert jax.tree.map(lambda x: x.shape, after) == jax.tree.map(lambda x: x.shape, shapes)
    assert metrics["loss"].shape == ()
    return shapes


@pytest.mark.parametrize(
    ("variant", "masks"),
    [
        pytest.param("cifar100_r18", {"query/kernel": (256, 128), "value/kernel": (256, 1)}, marks=pytest.mark.slow),
        ("cub_r18", {"query/kernel": (257, 128)}),  # λ is a channel, the number of images is drawn
        pytest.param("imagenet_r50", {"query_norm/scale": (512,)}, marks=pytest.mark.slow),  # two images, norm
        pytest.param("cifar100_deit_s", {"query/kernel": (385, 192)}, marks=pytest.mark.slow),
    ],
)
def test_full_size_traces(variant, masks, monkeypatch):
    def pictures(dataset, split, size=None):
        side = size or (32, 32)
        return Arrays({"image": np.zeros((8, *side, 3), np.uint8), "label": np.arange(8, dtype=np.int32)})

    monkeypatch.setattr(labelled, "tfds_images", pictures)
    shapes = traced(variant, "batch_size=8", "data.threads=1")
    for path, shape in masks.items():
        layer, name = path.split("/")
        assert shapes.params["generator"][layer][name].shape == shape
    assert shapes.extra["teacher"].keys() == shapes.params.keys() - {"generator"}


@pytest.mark.parametrize("method", ["none", "cutmix", "automix", "samix"])
def test_the_other_methods_trace_in_the_same_experiment(method):
    shapes = traced("small", *TINY, "batch_size=20", f"method={method}")
    assert ("generator" in shapes.params) == (method in ("automix", "samix"))
    assert sorted(shapes.params["heads"]) == (["mix", "one"] if "generator" in shapes.params else ["one"])


def test_the_generator_follows_its_own_schedule():
    config = configs.load("configs/adautomix.py:small", [f"--config.{each}" for each in TINY])
    with config.unlocked():
        config.methods.adautomix.schedule = {"peak": 10.0, "decay": "constant"}
    made = loop.build(config, None)
    params = {"generator": {"w": np.ones(2, np.float32)}, "heads": {"w": np.ones(2, np.float32)}}
    updates, _ = made.optimizer.update(jax.tree.map(np.ones_like, params), made.optimizer.init(params), params)
    decay = 1 + config.optimizer.weight_decay
    np.testing.assert_allclose(updates["generator"]["w"], -10 * decay, rtol=1e-5)
    np.testing.assert_allclose(updates["heads"]["w"], -0.1 * decay, rtol=1e-5)


def test_a_seed_splits_the_digits_anew():
    labels = [next(experiment("small", *TINY, f"seed={seed}")[0].batches())["label"] for seed in (0, 0, 1)]
    np.testing.assert_array_equal(labels[0], labels[1])
    assert (labels[0] != labels[2]).any()


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (("method=adautomiks",), "adautomix"),
        (("teacher.use=False",), "teacher.use=True"),
        (("batch_size=2",), "num_sources=3 is more than the batch"),
        (("methods.adautomix.rule.beta=1.5",), "beta=1.5"),
        (("methods.adautomix.rule.linear_share=-1.0",), "linear_share"),
        (("methods.adautomix.rule.num_sources=1",), "two images"),
        (("methods.adautomix.generator.scale=4",), "set the scale to 2"),
        (("tap=stage1",), "set the scale to 1"),
        (("tap=stage7",), "it has stage1, stage2, stage3"),
        (("methods.adautomix.rule.betta=0.5",), "beta"),
    ],
)
def test_what_makes_no_game_is_refused_before_anything_compiles(overrides, named):
    with pytest.raises(InputError, match=named):
        experiment("small", *TINY, *overrides)
