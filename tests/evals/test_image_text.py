"""Images with several captions, and captions of several images, in the report of a held-out set."""

import csv

import numpy as np
import pytest
from PIL import Image

from experiments.clip import evaluators
from experiments.vlp_baselines import class_weights
from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.evals import image_text_retrieval, normalized, zero_shot_weights
from mixcon.evals.image_text import pictures, retrieval_report, zero_shot_report

WAYS, ENDS = ("image_to_text", "text_to_image"), ("", "/chance")


def rows(seed, *shape):
    return normalized(np.random.default_rng(seed).normal(size=shape))


def set_of(images, captions, **fields):
    """An image repeated for each of its captions, whose embeddings lie near it."""
    image = np.repeat(rows(0, images, 8), captions, axis=0)
    text = normalized(image + 0.05 * rows(1, *image.shape))
    records = [
        {"image": np.full((8, 8, 3), i // captions, np.uint8), "text": f"caption {i}"}
        | {name: value(i) for name, value in fields.items()}
        for i in range(len(image))
    ]
    return image, text, records


def measured(*arguments, **options):
    return {name: value for name, value in retrieval_report(*arguments, name="set", **options)}


@pytest.mark.parametrize(
    ("fields", "options"),
    [
        ({"file": lambda i: f"{i // 5}.png"}, {}),
        ({"key": lambda i: f"{i // 5}.png"}, {}),
        ({"coco_id": lambda i: 1000 - i // 5}, {"image_id": "coco_id"}),
        ({"name": lambda i: f"scene {i // 5}"}, {"image_id": "name"}),
    ],
)
def test_any_caption_of_an_image_is_right_and_each_image_is_a_candidate_once(fields, options):
    image, text, records = set_of(20, 5, **fields)
    found = measured(image, text, records, **options)
    assert found["image_to_text/R@1"] == found["text_to_image/R@1"] == 1.0
    assert found["text_to_image/R@5/chance"] == pytest.approx(5 / 20)
    assert found["image_to_text/R@1/chance"] == pytest.approx(5 / 100)
    assert found["image_to_text/R@5/chance"] > 0.2
    grid = found["grid/text_to_image"]
    assert grid["result_correct"][:, 0].all()
    assert (grid["result_correct"].sum(1) == 1).all(), "no image is shown twice"
    assert (grid["ranks"] == 1).all()
    assert found["grid/image_to_text"]["result_correct"].all(), "five captions, five results"
    one_each = measured(image[::5], text[::5], records[::5], **options)
    for name in ("uniformity/image", "gap/centroid_distance"):
        assert found[name] == pytest.approx(one_each[name]), f"{name} counts an image once"


def test_a_caption_shared_by_two_images_is_right_for_both_and_joins_them_no_further():
    """Images 0 and 1 have captions (a, b) and (a, c): b is wrong for image 1."""
    image = np.eye(4, dtype=np.float32)[[0, 0, 1, 1, 2, 2]]
    text = np.eye(4, dtype=np.float32)[[0, 1, 0, 3, 2, 2]]  # b lies on image 1, a on image 0, c on neither
    records = [
        {"image": np.zeros((8, 8, 3), np.uint8), "text": words, "file": str(i // 2)} for i, words in enumerate("abacde")
    ]
    found = measured(image, text, records)
    assert found["text_to_image/R@1"] == pytest.approx(4 / 6), "a finds image 0 twice, b image 1, c nothing"
    assert found["image_to_text/R@1"] == pytest.approx(2 / 3), "image 1 finds b"


def test_without_a_name_every_record_is_an_image_and_equal_texts_are_right():
    image, text, records = set_of(12, 1)
    for record in records[:6]:
        record["text"] = "the same"
    want = image_text_retrieval(image, text, image_ids=[0] * 6 + [*range(1, 7)], text_ids=[0] * 6 + [*range(1, 7)])
    found = measured(image, text, records)
    assert {name: found[name] for name in want} == want


def test_equal_names_in_different_shards_are_different_pictures():
    records = [{"image": np.full((2, 2, 3), i, np.uint8), "key": "000"} for i in (0, 1, 0)]
    assert pictures(records).tolist() == [0, 1, 0]
    assert pictures([{"image": np.zeros((2, 2, 3), np.uint8)}] * 3).tolist() == [0, 1, 2]
    with pytest.raises(InputError, match=r"image_id.*'coco_id'"):
        pictures(records, "coco_id")


def test_a_folder_with_several_captions_a_picture_is_evaluated_as_such(tmp_path):
    with (tmp_path / "captions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "text"])
        for i in range(12):
            Image.fromarray(np.full((8, 8, 3), i // 3, np.uint8)).save(tmp_path / f"{i // 3}.png")
            table.writerow([f"{i // 3}.png", f"caption {i}"])
    image, text, _ = set_of(4, 3)
    held_out = {"name": "mixcon.data.folder.image_folder", "path": str(tmp_path), "size": (8, 8)}

    def found(*more, name="clip"):
        config = configs.load(f"configs/{name}.py:small", ["--config.zero_shot=()", "--config.probes=()", *more])
        config.data.evals = {"held_out": held_out}
        embedded = {"image": image, "text": text, "index": np.arange(12)}
        made = evaluators(config, lambda state, pairs: embedded, lambda state, texts: None)
        return dict(made["held_out"](None))

    by_file, by_text = found(), found("--config.image_id=text")
    assert by_file["text_to_image/R@1"] == by_file["image_to_text/R@1"] == 1
    assert by_text["text_to_image/R@1"] == 0, "copies tie, and ties count against the right one"
    assert by_file.keys() == {*found(name="contrastive_gap")} - {f"{way}/R@3{end}" for way in WAYS for end in ENDS}


def test_classes_of_two_heads_are_the_weighted_sum_of_what_each_head_says():
    """w z·(mean of z prompts, unit) + (1 - w) h·(the same of h), though prompts agree in one head only."""
    share, image = 0.3, (rows(2, 5, 4), rows(3, 5, 4))
    prompts = [rows(4, 6, 4).reshape(2, 3, 4), rows(5, 6, 4).reshape(2, 3, 4)]
    prompts[1][0] = prompts[1][0, :1]
    scores = 0
    for weight, features, words in zip((share, 1 - share), image, prompts, strict=True):
        mean = words.mean(1)
        scores = scores + weight * features @ (mean / np.linalg.norm(mean, axis=1, keepdims=True)).T
    halves = share**0.5, (1 - share) ** 0.5
    joined, both = (np.concatenate([a * x for a, x in zip(halves, part, strict=True)], -1) for part in (image, prompts))
    np.testing.assert_allclose(joined @ class_weights(both, share), scores, rtol=1e-5, atol=1e-6)
    alone = np.concatenate([prompts[0], 0 * prompts[1]], -1)
    np.testing.assert_allclose(class_weights(alone, 1.0)[:4], zero_shot_weights(prompts[0]))


def test_a_zero_shot_task_uses_the_classifier_that_is_handed_in():
    image, weights = np.eye(3, dtype=np.float32), np.eye(3, dtype=np.float32)[:, [0, 2, 1]]
    found = dict(zero_shot_report(image, weights, ["a", "b", "other"], ["a", "b", "c"], name="letter"))
    assert found["top1"] == 0.5
    assert found["confusion"]["matrix"].tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 0]]
