"""The classifier that any policy can mix: every policy trains, published forms trace, mistakes are refused."""

import importlib
import math

import jax
import numpy as np
import pytest
from run_files import measured

from mixcon import config as configs
from mixcon.data import labelled
from mixcon.data.sources import Arrays
from mixcon.errors import InputError
from mixcon.mixers.classifier import NAMES
from mixcon.train import loop
from mixcon.train import mesh as meshes

CONFIG = "configs/mixup_classification.py"
TINY = ("mesh.data=1", "steps=2", "batch_size=8", "log_every=1", "eval_every=-1", "checkpoint.every=2",
        "schedule.warmup_steps=0", "robustness={}")  # fmt: skip
TOKEN = ("token_cutmix", "tl_align", "tokenmix", "maskmix", "mixpro", "smmix", "spanmix", "transmix", "mergemix")
PUBLISHED = ("cifar100_r18", "imagenet_r50", "imagenet_rsb_a3", "imagenet_deit_s", "tiny_rx50")


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def load(variant, *overrides):
    return configs.load(f"{CONFIG}:{variant}", [f"--config.{each}" for each in overrides])


@pytest.mark.slow  # the battery of experiments trains one that looks at the network and one that relabels
@pytest.mark.parametrize("name", NAMES)
def test_every_policy_trains(name, tmp_path):
    loop.train(load("small_vit" if name in TOKEN else "small", *TINY, f"mixer.name={name}"), tmp_path, progress=False)
    losses = [line["train/loss"] for line in measured(tmp_path) if "train/loss" in line]
    assert len(losses) == 2
    assert all(math.isfinite(loss) for loss in losses)


def test_the_study_has_an_arm_for_every_policy():
    study = importlib.import_module("mixcon.reproduce.run").load_study("mixup_classification")
    arms = set(study.tables["small"].arms) | set(study.tables["small_vit"].arms)
    assert arms >= set(NAMES)


def test_a_short_run_measures_everything(tmp_path):
    short = ("steps=4", "batch_size=50", "eval_every=2", "data.train.train=100", "data.held.train=100",
             "data.test.train=100", "data.held.held=1400", "data.test.held=1400", "log_every=2", "mesh.data=1",
             "robustness.corruptions=('contrast',)", "mixer.name=cutmix", "mixer.alpha=0.7")  # fmt: skip
    loop.train(load("small", *short), tmp_path, progress=False)
    first, last = [line for line in measured(tmp_path) if "eval/test/top1" in line]
    for key in ("nll", "ece", "adaptive_ece", "classwise_ece", "brier", "temperature", "scaled/ece", "scaled/nll"):
        assert math.isfinite(first[f"eval/test/{key}"]), key
    assert last["eval/test/scaled/nll"] <= last["eval/test/nll"] + 0.05
    for key in ("fgsm", "occlude", "corrupt/contrast", "mean_corruption_error"):
        assert 0 <= last[f"eval/test/{key}"] <= 1
        assert f"eval/test/{key}" not in first, "robustness is measured at the end only"
    assert last["eval/test/fgsm"] <= last["eval/test/top1"]
    assert (tmp_path / "evals" / "4" / "test_reliability.npz").is_file()


@pytest.mark.parametrize("variant", [v if v == "cifar100_r18" else pytest.param(v, marks=pytest.mark.slow)
                                     for v in PUBLISHED])  # fmt: skip
def test_published_sizes_trace_on_pictures_of_their_size(variant, tmp_path, monkeypatch):
    config = load(variant, "batch_size=8", "mixer.name=puzzlemix", "mesh.data=4")
    classes = config.model.num_classes

    def pictures(dataset, part="", *, size=None, data_dir=None, split="", side="", image="", label=""):
        height, width = size or ((64, 64) if dataset == "tiny_imagenet" else (32, 32))
        return Arrays({"image": np.zeros((16, height, width, 3), np.uint8), "label": np.arange(16) % classes})

    for name in ("tfds_images", "parquet_images"):
        monkeypatch.setattr(labelled, name, pictures)
    mesh = meshes.make_mesh(**config.mesh)
    with jax.set_mesh(mesh):
        experiment = loop.build(config, tmp_path)
        shapes, _ = loop.state_layout(experiment, config, mesh)
        batch = loop.device_part(next(experiment.batches()))
        after, metrics = jax.eval_shape(experiment.step, shapes, batch)
    assert jax.tree.structure(after) == jax.tree.structure(shapes)
    assert metrics["loss"].shape == ()


def test_mistakes_are_refused_before_anything_is_compiled(tmp_path):
    for variant, overrides, message in (
        ("small", ("mixer.name=automix",), "configs/adautomix.py"),
        ("small", ("mixer.name=cutmx",), "did you mean"),
        ("small", ("mixer.name=smoothmix", "mixer.alpha=1.0"), "alpha"),
        ("small", ("gradient={'name': 'mixcon.train.gradients.grad_cache', 'parts': 2}",), "accumulate"),
        ("small", ("robustness={'epsilom': 0.1}",), "epsilom"),
        ("small", ("loss={'name': 'mixcon.mixers.scores.soft', 'eta': 0.1}",), "eta"),
        ("small", ("data.train.side=all",), "train, held, test"),
    ):
        with pytest.raises(InputError, match=message):
            loop.build(load(variant, *overrides), tmp_path)
    with pytest.raises(InputError, match="no variant 'cifar'"):
        load("cifar")


def test_policies_that_need_another_network_say_so(tmp_path):
    for variant, name, message in (("small", "transmix", "transformer"), ("small_vit", "snapmix", "residual")):
        config = load(variant, *TINY, f"mixer.name={name}")
        mesh = meshes.make_mesh(**config.mesh)
        with jax.set_mesh(mesh):
            experiment = loop.build(config, tmp_path)
            shapes, _ = loop.state_layout(experiment, config, mesh)
            with pytest.raises(InputError, match=message):
                jax.eval_shape(experiment.step, shapes, loop.device_part(next(experiment.batches())))
