"""Every config: its resolved text is kept, its small form builds, its full-size form traces."""

import ast
import json
import os
import pathlib

import jax
import numpy as np
import pytest
from PIL import Image

from mixcon import config as configs
from mixcon.data import Emoji, tokenizer
from mixcon.data.pack import pack
from mixcon.train import loop
from mixcon.train import mesh as meshes

GOLDEN = pathlib.Path(__file__).parent / "golden" / "configs"
VARIANTS = {
    "adautomix": (
        *("cifar100_r18", "cifar100_rx50", "cifar100_deit_s", "tiny_r18", "tiny_rx50"),
        *("imagenet_r18", "imagenet_r34", "imagenet_r50", "cub_r18", "cub_r50", "cub_rx50"),
        *("aircraft_r18", "aircraft_rx50", "cars_r18", "cars_rx50", "small"),
    ),
    "align": ("l2", "b7", "b7_base", "b5_base", "b3_medium", "b1_mini", "small", "digits"),
    "clip": ("b32", "b16", "l14", "small"),
    "cmixup": ("airfoil", "no2", "crime", "skillcraft", "exchange_rate", "electricity", "sinusoid", "small"),
    "contrastive_behaviour": ("cifar10", "cifar100", "svhn", "imagenet100", "small"),
    "contrastive_gap": ("coco128", "coco64", "coco32", "idealized", "small", "digits", "digits_idealized"),
    "cwcl": ("image_text", "speech_text", "small", "small_speakers", "encoder"),
    "geodesic_mixup": ("m2mix_flickr", "m3mix_flickr", "m2mix_coco", "small", "start"),
    "isogclr": ("cifar10", "cifar100", "cc3m", "fastclip_cc3m", "fastclip_cc12m", "small"),
    "m3col": ("rosmap", "brca", "n24news", "food101", "small", "finetune_flickr", "finetune_small"),
    "mochi": ("imagenet100", "imagenet1k", "small", "small_cifar10"),
    "meow": (
        "acm",
        "imdb",
        "dblp",
        "aminer",
        "adameow_acm",
        "adameow_imdb",
        "adameow_dblp",
        "adameow_aminer",
        "small",
        "adameow_small",
    ),
    "mixup_classification": (
        *("cifar100_r18", "cifar100_rx50", "cifar100_deit", "tiny_r18", "tiny_rx50", "imagenet_r18", "imagenet_r50"),
        *("imagenet_rsb_a3", "imagenet_deit_s", "small", "small_vit", "small_cifar10"),
    ),
    "one_to_k": ("ccrk6", "ccrk10", "finetune", "small", "small18", "multi30k"),
    "siglip": ("b16", "l16", "small"),
    "vlp_baselines": (
        *(f"{data}_{method}" for data in ("cc3m", "cc12m", "yfcc15m") for method in ("clip", "cl2l", "siamlip")),
        *(f"{data}_{method}" for data in ("cc3m", "cc12m", "yfcc15m") for method in ("byolip", "barlip", "swalip")),
        *(f"{data}_cl2l_vit_{size}" for data in ("cc3m", "cc12m", "yfcc15m") for size in ("s16", "b16")),
        *("small", "small_weak", "digits", "digits_weak"),
    ),
}
ALL = [(name, variant) for name, variants in VARIANTS.items() for variant in variants]
IMAGE_TEXT = ("clip", "siglip")  # full-size forms that read packed image-text shards
FULL = [(name, variant) for name, variant in ALL if name in IMAGE_TEXT and variant != "small"]
FULL += [("isogclr", "fastclip_cc12m"), pytest.param("align", "b5_base", marks=pytest.mark.slow)]


def test_every_config_file_is_listed_here():
    there = {path.stem for path in pathlib.Path("configs").glob("*.py")}
    assert there == VARIANTS.keys()
    for name in there:
        docstring = ast.get_docstring(ast.parse(pathlib.Path(f"configs/{name}.py").read_text()))
        assert all(f"`{variant}`" in docstring for variant in VARIANTS[name])


@pytest.mark.parametrize(("name", "variant"), ALL)
def test_resolved_text_is_the_golden_one(name, variant):
    """`WRITE_GOLDEN=1 pytest tests/test_configs.py` writes them anew; the diff shows what a change does to all."""
    text = configs.to_json(configs.load(f"configs/{name}.py:{variant}")) + "\n"
    path = GOLDEN / f"{name}-{variant}.json"
    if os.environ.get("WRITE_GOLDEN"):
        path.write_text(text)
    assert path.read_text() == text
    json.loads(text)


@pytest.fixture(scope="module")
def image_text_folder(tmp_path_factory):
    """A few real pictures with captions, packed as a user would pack their own, and a tokenizer."""
    folder = tmp_path_factory.mktemp("data")
    source = Emoji("composition", "train")
    rows = ["image,text"]
    for index in range(0, 64, 4):
        Image.fromarray(source[index]["image"]).save(folder / f"{index}.png")
        rows.append(f'{index}.png,"{source[index]["text"]}"')
    for side in ("train", "val"):
        (folder / f"{side}.csv").write_text("\n".join(rows))
    pack([str(folder / "*.csv")], folder / "image_text", progress=False)
    tokenizer.train([row.partition(",")[2] for row in rows], vocab_size=300).save(folder / "tokenizer.json")
    return folder


@pytest.mark.parametrize(("name", "variant"), FULL)
def test_full_size_traces_on_packed_data(name, variant, image_text_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("MIXCON_DATA", str(image_text_folder))
    config = configs.load(
        f"configs/{name}.py:{variant}",
        ["--config.batch_size=8", f"--config.tokenizer.path={image_text_folder / 'tokenizer.json'}"],
    )
    with jax.numpy_dtype_promotion("standard"), jax.set_mesh(meshes.make_mesh(data=4, model=2)):
        mesh = meshes.make_mesh(data=4, model=2)
        experiment = loop.build(config, tmp_path)
        shapes, places = loop.state_layout(experiment, config, mesh)
        batch = loop.device_part(next(experiment.batches()))
        assert batch["image"].shape == (8, *config.data.train.size, 3)
        after, metrics = jax.eval_shape(experiment.step, shapes, batch)
    assert jax.tree.structure(after) == jax.tree.structure(shapes)
    assert metrics["loss"].shape == ()
    specs = {str(place.spec) for place in jax.tree.leaves(places.params)}
    assert any("model" in spec for spec in specs), "the tensor-parallel rules find their parameters"
    count = sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.params))
    assert count > 80e6
