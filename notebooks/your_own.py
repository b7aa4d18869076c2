# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Your own images and captions: train, retrieve, look
#
# Here is a folder of pictures with a caption each. Two small networks, one for pictures and one for words, learn from
# nothing else which belong together; then you ask. **Type words, and see which pictures come up. Add a picture to the
# words, or ask with a picture alone: click on one.**
#
# As delivered the folder is made of emoji, and training takes a minute or two. Point `FOLDER` at yours.
#
# ![Words and a picture, the pictures and captions they find](../docs/img/notebooks/your_own.png)

# %%
import csv
import os
from pathlib import Path

import numpy as np
from PIL import Image

import exhibit
from exhibit import GOOD, INK, MUTED, SERIES
from mixcon import config as configs
from mixcon import evals
from mixcon.data.emoji import Emoji
from mixcon.data.folder import image_folder
from mixcon.data.records import read
from mixcon.report.run import load_run
from mixcon.train import loop
from mixcon.train.encoders import encoders

# %% [markdown]
# A folder of yours has a table (`captions.csv` with columns `image` and `text`; `metadata.jsonl` with `file_name` and
# `text`; ...) or a `.txt` beside each picture; a few hundred pairs are enough to see something. A tenth of the pictures is
# kept out of training.

# %%
RUNS = Path(os.environ.get("MIXCON_RUNS", "../runs"))
STEPS = int(os.environ.get("MIXCON_STEPS", "240"))
FOLDER = RUNS / "emoji_folder"  # for instance Path("~/Pictures/holiday").expanduser()
SIDE = 48  # pixels that the network sees

if FOLDER == RUNS / "emoji_folder" and not (FOLDER / "captions.csv").exists():
    FOLDER.mkdir(parents=True, exist_ok=True)
    rows = [("image", "text")]
    for record in read(Emoji("both", "all")):
        if record["tone"] in ("none", "dark") and record["group"] not in ("Flags", "Component"):
            name = "".join(letter if letter.isalnum() else "_" for letter in record["text"]) + ".png"
            Image.fromarray(record["image"]).save(FOLDER / name)
            more = [word for word in record["keywords"].split(" | ") if word not in record["text"]]
            rows.append((name, ", ".join([record["text"], *more])))
    with (FOLDER / "captions.csv").open("w", newline="", encoding="utf-8") as file:  # last: the folder is whole
        csv.writer(file).writerows(rows)

# %% [markdown]
# The config is `configs/clip.py:small` on this folder, a little smaller; `mixcon train` takes the same. Stop it when you
# like (■): run the cell again, and it goes on where it was. A new folder or other numbers want a new `workdir`.

# %%
workdir = RUNS / f"own_{FOLDER.name}"
pairs = dict(name="mixcon.data.folder.image_folder", path=str(FOLDER.resolve()), size=(SIDE, SIDE), keep=True)
config = configs.load(
    "../configs/clip.py:small",
    [
        f"--config.data.train={pairs | dict(side='train')}",
        f"--config.data.evals={dict(held_out=pairs | dict(side='test'))}",
        "--config.keyword_share=0.0", "--config.zero_shot=()", "--config.probes=()",
        "--config.tokenizer={'path': '', 'vocab_size': 2000, 'kind': 'wordpiece'}",
        f"--config.steps={STEPS}", f"--config.eval_every={STEPS}", f"--config.schedule.warmup_steps={STEPS // 10}",
        f"--config.batch_size={min(128, len(image_folder(FOLDER, side='train')))}", "--config.checkpoint.every=100",
        f"--config.model.image.image_size={SIDE}", "--config.model.image.patch=12", "--config.model.text.context_length=16",
    ],
)  # fmt: skip
loop.train(config, workdir)

# %% jupyter={"source_hidden": true}
kept = load_run(workdir).series
loss = kept["train/loss"]
k = max(k for k in (1, 5, 10) if f"eval/held_out/text_to_image/R@{k}" in kept)  # as many as are held out
figure = exhibit.panels("training loss", f"held-out pairs: among the first {k}", widths=(0.6, 0.4), height=360, gap=0.1)
figure.add_scatter(x=loss.steps, y=loss.values, mode="lines", line=dict(color=SERIES[0], width=3), row=1, col=1)
exhibit.label(figure, f"guessing: {np.log(config.batch_size):.1f}", 0.98, float(np.log(config.batch_size)), at=1, xref="x domain", xanchor="right", color=MUTED, yshift=10)
figure.add_hline(np.log(config.batch_size), line=dict(color=MUTED, width=1, dash="dot"), row=1, col=1)
found = {way: kept[f"eval/held_out/{way}/R@{k}"].last for way in ("text_to_image", "image_to_text")}
chance = kept[f"eval/held_out/text_to_image/R@{k}/chance"].last
figure.add_bar(
    x=["words → picture", "picture → words", "by chance"], y=[*found.values(), chance], width=0.6, hoverinfo="skip",
    marker=dict(color=[SERIES[0], SERIES[1], MUTED]), texttemplate="%{y:.0%}", textposition="outside", row=1, col=2,
)  # fmt: skip
figure.update_layout(xaxis=dict(title_text="step"), yaxis=dict(rangemode="tozero"), yaxis2=dict(range=[0, 1.1], tickformat=".0%"))
exhibit.Exhibit(figure, lambda: f"after <b>{loss.steps[-1]}</b> steps of {config.batch_size} pairs: loss <b>{loss.last:.2f}</b>")

# %% [markdown]
# Now everything in the folder becomes a row once, 128 numbers for a picture and 128 for a caption; from here on an answer
# is one caption through the small network, and one product.

# %%
SHOWN, ACROSS, LINES = 96, 5, 8
WEIGHT = 0.5  # of the words beside a picture: at 1 they drown it
find = encoders(workdir)
records = list(read(image_folder(FOLDER, size=(SHOWN, SHOWN))))
pictures = {record["file"]: record for record in records}  # those with several captions once
unseen = {record["file"] for record in read(image_folder(FOLDER, side="test", size=(8, 8)))}
files = sorted(pictures, key=lambda file: (file not in unseen, file))
captions = list(dict.fromkeys(record["text"] for record in records))
picture_rows, caption_rows = find.images([pictures[file]["image"] for file in files]), find.texts(captions)
sources = [exhibit.picture(pictures[file]["image"]) for file in files]
blank = exhibit.picture(np.full((2, 2, 3), 255, np.uint8))


# %% jupyter={"source_hidden": true}
def in_lines(text, width, lines):
    """Words in lines of so many letters, the rest cut."""
    done = [""]
    for word in text.split():
        longer = f"{done[-1]} {word}".strip()
        done = [*done[:-1], longer] if len(longer) <= width or not done[-1] else [*done, word]
    return "<br>".join(line[: width + 3] for line in done[:lines]) + ("…" if len(done) > lines else "")


figure = exhibit.panels("you ask", "pictures that come up; <b>green: not trained on</b>", "captions that come up, by cosine", widths=(0.15, 0.53, 0.32), height=480, gap=0.035)
figure.add_image(source=blank, x0=0.02, y0=0.02, dx=0.96 / SHOWN, dy=0.96 / SHOWN, hoverinfo="skip", row=1, col=1)
exhibit.label(figure, "", 0.5, 1.3, at=1, xanchor="center", yanchor="top", align="center", size=15)
places = [(i % ACROSS, 1.42 * (i // ACROSS)) for i in range(2 * ACROSS)]
for x, y in places:
    figure.add_image(source=blank, x0=x + 0.06, y0=y, dx=0.88 / SHOWN, dy=0.88 / SHOWN, hoverinfo="skip", row=1, col=2)
    exhibit.label(figure, "", x + 0.5, y + 0.93, at=2, xanchor="center", yanchor="top", align="center", size=11)
figure.add_scatter(
    x=[x + 0.5 for x, _ in places], y=[y + 0.44 for _, y in places], mode="markers", hoverinfo="none",
    marker=dict(symbol="square", size=86, color="rgba(0,0,0,0.005)"), row=1, col=2,
)  # fmt: skip
figure.add_bar(orientation="h", marker=dict(color="#dbe8f2"), width=0.8, hoverinfo="skip", row=1, col=3)
for line in range(LINES):
    exhibit.label(figure, "", 0, line, at=3, size=13, xshift=4)
asked, *shown, spots, bars = figure.data
words_asked, *under = figure.layout.annotations[3 : 4 + 2 * ACROSS]
beside = figure.layout.annotations[4 + 2 * ACROSS :]
bare, top = dict(visible=False), dict(constrain="domain", constraintoward="top")
figure.update_layout(
    xaxis=bare | dict(range=[0, 1]), yaxis=bare | top | dict(range=[2.9, 0], scaleanchor="x"),
    xaxis2=bare | dict(range=[0, ACROSS]), yaxis2=bare | top | dict(range=[2.9, 0], scaleanchor="x2"),
    xaxis3=bare | dict(range=[0, 1.0]), yaxis3=bare | dict(range=[LINES - 0.4, -0.6]),
)  # fmt: skip


def draw(words, picture):
    """What is nearest to the words, to the picture, or to both together."""
    word_row = find.texts([words.strip()])[0]
    query = word_row
    if picture >= 0:
        query = evals.combined_query(picture_rows[[picture]], word_row, weight=WEIGHT if words.strip() else 0.0)[0]
    query = query / np.linalg.norm(query)
    cosines = np.where(np.arange(len(files)) == picture, -1, picture_rows @ query)  # the picture itself is no answer
    nearest = np.argsort(-cosines)[: 2 * ACROSS]
    asked.source = sources[picture] if picture >= 0 else blank
    words_asked.update(text=("+ " if picture >= 0 and words.strip() else "") + in_lines(words, 18, 4), y=1.12 if picture >= 0 else 0.1)
    spots.customdata = nearest
    for image, text, place in zip(shown, under, nearest, strict=False):
        image.source = sources[place]
        text.update(text=in_lines(pictures[files[place]]["text"], 15, 2), font_color=GOOD if files[place] in unseen else INK)
    cosines = caption_rows @ query
    best = np.argsort(-cosines)[:LINES]
    bars.update(x=np.maximum(cosines[best], 0), y=np.arange(len(best)))
    for text, place in zip(beside, best, strict=False):
        text.text = f"<b>{cosines[place]:.2f}</b>  {in_lines(captions[place], 34, 1)}"
    return f"among <b>{len(files):,}</b> pictures and <b>{len(captions):,}</b> captions"


names = [("none", -1)] + [(in_lines(pictures[file]["text"], 22, 1), i) for i, file in enumerate(files)]
search = exhibit.Exhibit(
    figure,
    draw,
    words=exhibit.words("words", "cat", ["red", "green vegetable", "sad face", "woman, dark skin tone", "bird", ""]),
    picture=exhibit.slider("and a picture", names),
)


def clicked(trace, points, state):
    search.controls["picture"].value = int(trace.customdata[points.point_inds[0]])


search.figure.data[figure.data.index(spots)].on_click(clicked)
search

# %% [markdown]
# A query is a row: that of the words, of the picture, or $x + t/2$ for both. What came up was found among pictures that the
# network knows and, in green, those it has never seen. After 240 steps on 1,700 emoji it tells colours, cats, faces and
# people apart, and cannot read a clock: try. More: `mixcon report` on the same folder draws a page with ranks, grids and
# similarities; larger towers, other losses and pretrained weights are flags of `configs/clip.py`.
#
# Radford et al., *Learning Transferable Visual Models From Natural Language Supervision*, 2021; Jia et al., *Scaling Up
# Visual and Vision-Language Representation Learning With Noisy Text Supervision*, 2021 (pictures and words together).
