"""A run's folder as training would leave it, from real images: `python tests/report/fake_run.py FOLDER`."""

import io
import json
import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from mixcon.evals import (
    artifacts,
    confusion_matrix,
    image_text_retrieval,
    modality_gap,
    normalized,
    predict,
    project,
    ranks,
    top_k,
    zero_shot,
)

EMOJI = Path(__file__).parents[2] / "mixcon" / "data" / "embedded" / "emoji.parquet"


def pairs(count, seed=0):
    """Real images with names and class names: emoji, or digits where the emoji file is absent."""
    rng = np.random.default_rng(seed)
    if EMOJI.exists():
        import pyarrow.parquet as parquet

        rows = parquet.read_table(EMOJI, columns=["image", "group", "name_en"]).to_pylist()
        rows = [rows[i] for i in rng.permutation(len(rows))[:count]]
        images = np.stack([np.asarray(Image.open(io.BytesIO(r["image"])).convert("RGB")) for r in rows])
        return images, [r["name_en"] for r in rows], [r["group"] for r in rows]
    digits = load_digits()
    chosen = rng.permutation(len(digits.images))[:count]
    gray = (255 - digits.images[chosen] * 15).astype(np.uint8).repeat(4, 1).repeat(4, 2)
    groups = [f"digit {t}" for t in digits.target[chosen]]
    return gray[..., None].repeat(3, -1), [f"{g}, number {i}" for i, g in enumerate(groups)], groups


def embeddings(codes, noise, seed=0):
    """What two trained towers would give: shared meaning, noise of their own, and a gap between them."""
    rng = np.random.default_rng(seed)
    classes, dim = codes.max() + 1, 48
    meaning = 0.8 * rng.normal(size=(classes, dim))[codes] + rng.normal(size=(len(codes), dim))
    gap = 1.2 * rng.normal(size=dim)
    image = normalized(meaning + noise * rng.normal(size=meaning.shape) + gap)
    text = normalized(meaning + noise * rng.normal(size=meaning.shape) - gap)
    return image, text, normalized(rng.normal(size=(classes, dim)) * 0.1 + meaning_of(codes, meaning) - gap)


def meaning_of(codes, meaning):
    return np.stack([meaning[codes == c].mean(0) for c in range(codes.max() + 1)])


def grid(images, names, image, text, forward, count=6):
    """The first queries' top five, in one direction."""
    query, corpus = (image, text) if forward else (text, image)
    _, index = top_k(query[:count], corpus, 5)
    shared = dict(result_correct=index == np.arange(count)[:, None], ranks=ranks(query, corpus)[:count])
    if forward:
        return artifacts.retrieval_grid(query_images=images[:count], truth_texts=names[:count],
                                        result_texts=[[names[j] for j in row] for row in index],
                                        title="Image → text", **shared)
    return artifacts.retrieval_grid(query_texts=names[:count], truth_images=images[:count], result_images=images[index],
                                    title="Text → image", **shared)


def make_run(folder, *, count=300, steps=1200, finished=True, artifact_files=True):
    """Write the folder; returns it."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images, names, groups = pairs(count)
    classes, codes = np.unique(groups, return_inverse=True)
    reached = steps if finished else int(steps * 0.62)
    lines = []
    for step in range(10, reached + 1, 10):
        progress = step / steps
        line = {"step": step, "time": 1.7e9 + 0.2 * step, "train/loss": 0.7 + 4.2 * np.exp(-4 * progress)
                + 0.15 * rng.normal(), "train/grad_norm": 1 + abs(rng.normal()) * np.exp(-2 * progress),
                "train/learning_rate": 1e-3 * 0.5 * (1 + np.cos(np.pi * progress)), "train/epoch": step / 30,
                "train/accuracy": min(1, 0.9 * progress**0.5 + 0.02 * rng.normal()), "train/skipped_records": 0.0,
                "train/logit_scale": 14.3 + 20 * progress, "timing/examples_per_s": 1900 + 60 * rng.normal()}
        if step % (steps // 6) == 0:
            for split, noise in (("composition", 0.5 + 1.2 * (1 - progress)), ("concept", 1.3 + 1.2 * (1 - progress))):
                image, text, prompts = embeddings(codes, noise)
                line |= {f"eval/{split}/{k}": v for k, v in image_text_retrieval(image, text).items()}
                if split == "concept":
                    accuracies = zero_shot(image, prompts[:, None], codes)
                    line |= {f"eval/zero_shot/{k}": v for k, v in accuracies.items()}
                    line |= {f"eval/gap/{k}": v for k, v in modality_gap(image, text).items()}
        lines.append(json.dumps({k: float(v) if k != "step" else v for k, v in line.items()}))
    (folder / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    config = {"experiment": "experiments.clip", "steps": steps, "batch_size": 256, "seed": 0, "dataset": "emoji",
              "optimizer": {"name": "adamw", "learning_rate": 1e-3, "weight_decay": 0.2}, "mesh": {"data": -1}}
    (folder / "config.json").write_text(json.dumps(config, indent=2))
    run = {"versions": {"python": "3.11.2", "mixcon": "0.1.0", "jax": "0.10.2", "flax": "0.12.8"},
           "device": {"kind": "cpu", "platform": "cpu", "count": 1}, "processes": 1, "git": "3e4e97b",
           "argv": ["mixcon", "train", "--config", "configs/clip.py:small"], "started": 1.7e9, "mesh": {"data": 1}}
    (folder / "run.json").write_text(json.dumps(run, indent=2))
    if finished:
        spent = {"startup": 9.5, "compile": 14.2, "data_wait": 1.1, "step": 201.3, "eval": 12.4, "checkpoint": 3.9,
                 "other": 1.7}
        total = sum(spent.values())
        (folder / "goodput.json").write_text(json.dumps(spent | {"total": total, "loop_overhead": 0.014}))
    if artifact_files:
        image, text, prompts = embeddings(codes, 0.6)
        similar = image @ text.T
        predicted = predict(image, prompts.T)[:, 0]
        right = predicted == codes
        scores = [[g, f"{right[codes == c].mean():.3f}", (codes == c).sum()] for c, g in enumerate(classes)]
        counts = confusion_matrix(predicted, codes, classes=len(classes))
        xy = project(image, text, center_modalities=True)
        chosen = np.random.default_rng(1).permutation(count)[:90]
        for name, artifact in {
            "composition_image_to_text": grid(images, names, image, text, True),
            "composition_text_to_image": grid(images, names, image, text, False),
            "zero_shot_confusion": artifacts.confusion(counts, classes, title="Zero-shot groups"),
            "embedding_map": artifacts.embedding_map(*xy, labels=codes, names=classes, thumbnails=images[chosen],
                                                     thumbnail_index=chosen, title="Embedding map"),
            "similarities": artifacts.histogram(np.diag(similar), similar[~np.eye(count, dtype=bool)][:20000],
                                                title="Similarity of pairs"),
            "groups": artifacts.table(["group", "accuracy", "images"], scores, title="Accuracy by group"),
        }.items():
            artifacts.save_artifact(folder, reached, name, artifact)
    return folder


if __name__ == "__main__":
    print(make_run(sys.argv[1]))
