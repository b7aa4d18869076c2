"""A run asked for embeddings: the same as its own evaluation, whatever the size and number of pictures."""

import csv

import jax
import numpy as np
import pytest
from PIL import Image
from tiny import tiny_config

from mixcon import config as configs
from mixcon.data import Emoji
from mixcon.errors import InputError
from mixcon.train import evaluate, loop
from mixcon.train.encoders import CHUNK, encoders, picture_size

pytestmark = pytest.mark.slow
PAIRS = 40


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder of pictures with captions, trained on for two steps."""
    folder, workdir = tmp_path_factory.mktemp("mine"), tmp_path_factory.mktemp("run")
    source = Emoji("both", "train")
    with (folder / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "text"])
        for i in range(PAIRS):
            Image.fromarray(source[i]["image"]).save(folder / f"{i}.png")
            table.writerow([f"{i}.png", source[i]["text"]])
    piece = {"name": "mixcon.data.folder.image_folder", "path": str(folder), "size": (64, 64), "held_out": 0.2}
    config = tiny_config(
        f"--config.data.train={piece | {'side': 'train'}}",
        f"--config.data.evals={dict(held_out=piece | {'side': 'test'})}",
        "--config.keyword_share=0.0", "--config.zero_shot=()", "--config.probes=()", "--config.steps=2",
        "--config.checkpoint.every=2", "--config.eval_every=-1",
    )  # fmt: skip
    loop.train(config, workdir, progress=False)
    return workdir


def test_rows_are_those_of_the_model_itself(run):
    find, restored = encoders(run), evaluate.restore(run)
    assert find.step == 2
    records = [Emoji("both", "train")[i] for i in range(CHUNK + 3)]
    images = find.images([record["image"] for record in records])
    texts = find.texts([record["text"] for record in records])
    assert images.shape == texts.shape == (CHUNK + 3, 16)
    np.testing.assert_allclose(np.linalg.norm(images, axis=1), 1, atol=1e-5)
    np.testing.assert_allclose(find.texts([records[-1]["text"]]), texts[-1:], atol=1e-6)
    larger = np.asarray(Image.fromarray(records[0]["image"]).resize((128, 128), Image.Resampling.NEAREST))
    assert float(find.images([larger])[0] @ images[0]) > 0.98
    wide = np.pad(records[0]["image"], [(0, 0), (32, 32), (0, 0)])
    mixed = find.images([wide, records[0]["image"], wide.swapaxes(0, 1)])
    np.testing.assert_allclose(mixed[0], images[0], atol=1e-5, err_msg="the centre of a picture that is too wide")
    np.testing.assert_allclose(mixed[1], images[0], atol=1e-5)
    pixels = np.stack([record["image"] for record in records[:5]]).astype(np.float32) / 127.5 - 1
    batch = {"image": pixels, "tokens": np.zeros((5, 12), np.int32)}
    state = restored.state
    encode = jax.jit(
        lambda batch: restored.experiment.task.encode(state.averaged, state.extra, batch, key=None, train=False)[0]
    )
    np.testing.assert_allclose(encode(batch)["image"], images[:5], atol=1e-5)


def test_a_tower_of_any_size_is_shown_pictures_of_that_in_the_evaluation():
    clip, align = (configs.load(f"configs/{name}.py:small", []) for name in ("clip", "align"))
    assert picture_size(clip, {"image": {"image_size": 96}}) == (96, 96)
    assert picture_size(clip, {"image": {"image_size": (32, 48)}}) == (32, 48)
    assert picture_size(align, {"image": {}}) == (64, 64)
    full = configs.load("configs/align.py:l2", [])
    assert picture_size(full, {"image": {}}) == (289, 289)
    full.data.evals = {}
    assert picture_size(full, {"image": {}}) == (346, 346)


def test_what_cannot_be_encoded_is_refused(run, tmp_path):
    find = encoders(run)
    with pytest.raises(InputError, match=r"uint8 \[h, w, 3\], not float32"):
        find.images([np.zeros((8, 8, 3), np.float32)])
    with pytest.raises(InputError, match="nothing to encode"):
        find.texts([])
    with pytest.raises(InputError, match="not the folder of a run"):
        encoders(tmp_path)
