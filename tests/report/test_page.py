"""The page: whole and partial runs, nothing from outside, nothing of a run taken for markup."""

import html.parser
import json
import re

import numpy as np
import pytest
from fake_run import make_run

from mixcon.errors import InputError
from mixcon.evals import artifacts
from mixcon.report import summary_lines, write_report
from mixcon.report.run import load_run

VOID = {"meta", "img", "br", "path", "rect", "use", "image", "line", "circle", "hr"}


class Audit(html.parser.HTMLParser):
    """Collects tags, addresses and text of a page, and whether its tags are balanced."""

    def __init__(self, text):
        super().__init__()
        self.tags, self.addresses, self.words, self.open, self.ids = [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.addresses += [v for k, v in attributes if k in ("src", "href", "xlink:href", "srcset", "action", "data")]
        self.ids += [v for k, v in attributes if k == "id"]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.handle_starttag(tag, attributes)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = make_run(tmp_path_factory.mktemp("run") / "clip-emoji", count=60, steps=600)
    return folder, write_report(folder)


def test_the_page_is_one_self_contained_file(finished):
    _, target = finished
    text = target.read_text()
    audit = Audit(text)
    assert not audit.open
    assert "script" not in audit.tags
    assert not {"link", "iframe", "object", "embed"} & set(audit.tags)
    assert audit.addresses
    assert all(a.startswith(("data:image/png;base64,", "#")) for a in audit.addresses)
    assert "http" not in text.lower().replace("http-equiv", "")
    assert "@import" not in text
    assert all(u.startswith("#") for u in re.findall(r"url\(([^)]*)", text))
    assert len(audit.ids) == len(set(audit.ids))  # clip paths of two pictures must not be mixed up
    used = {u[1:] for u in re.findall(r"url\((#[^)]*)", text)} | {a[1:] for a in audit.addresses if a[0] == "#"}
    assert used <= set(audit.ids)


def test_the_page_holds_the_numbers(finished):
    folder, target = finished
    words = " ".join(Audit(target.read_text()).words)
    last = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])
    assert f"{100 * last['eval/concept/image_to_text/R@1']:.1f} %" in words
    assert f"{100 * last['eval/concept/image_to_text/R@1/chance']:.1f} %" in words
    for expected in ("600 of 600", "complete", "experiments.clip", "0.10.2", "optimizer.learning_rate", "4 min 4 s"):
        assert expected in words
    assert "82.5 %" in words  # of the time went into steps
    assert "To know" not in words


def test_both_themes_come_from_one_drawing(finished):
    text = finished[1].read_text()
    assert "prefers-color-scheme:dark" in text
    assert "prefers-color-scheme: dark" not in text  # there is one place only
    svg = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert svg
    assert all("var(--k" in s for s in svg)
    assert not any("#0072b2" in s or "#1b1f24" in s for s in svg)


def test_pictures_lie_beside_the_page_and_are_not_blank(finished):
    from PIL import Image

    names = {p.name for p in finished[1].parent.glob("*.png")}
    assert {"curves-train.png", "curves-eval.png", "headline.png", "goodput.png", "embedding_map.png"} <= names
    assert {"zero_shot_confusion.png", "similarities.png", "composition_image_to_text.png"} <= names
    for path in finished[1].parent.glob("*.png"):
        pixels = np.asarray(Image.open(path).convert("RGB"))
        assert min(pixels.shape[:2]) > 100
        assert len(np.unique(pixels.reshape(-1, 3)[::7], axis=0)) > 20, path


def test_summary_names_the_page_and_every_metric_beside_chance(finished):
    folder, target = finished
    lines = summary_lines(folder)
    assert lines[-1] == f"page: {target}"
    assert sum("chance" in line for line in lines) == 14  # 2 splits x 2 directions x 3 cut-offs, 2 zero-shot
    assert all(len(line) < 100 for line in lines[:-1])
    first = re.fullmatch(r"composition · image → text +R@1 +([\d.]+) % += +(\d+)x chance \(([\d.]+) %\)", lines[0])
    assert first
    assert float(first[1]) / float(first[3]) == pytest.approx(float(first[2]), rel=0.05)


def test_a_killed_run_gets_a_page_that_says_so(tmp_path):
    folder = make_run(tmp_path / "killed", count=40, steps=600, finished=False, artifact_files=False)
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"step": 380, "train/lo')
    text = write_report(folder).read_text()
    words = " ".join(Audit(text).words)
    for said in ("step 370 of 600", "cut short", "goodput.json is missing", "incomplete"):
        assert said in words, said
    assert "loss" in words


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({"config.json": "{}"}, "nothing was logged yet"),
        ({"metrics.jsonl": ""}, "no metrics yet"),
        ({"metrics.jsonl": 'nonsense\n{"step": 1, "train/loss": 2.0}\n'}, "unreadable line"),
        ({"metrics.jsonl": '[1]\n{"no": "step"}\n{"step": "x"}\n'}, "no metrics yet"),
        ({"metrics.jsonl": '{"step": 1, "train/loss": 2.0}\n', "config.json": "{broken"}, "config.json cannot be read"),
        ({"metrics.jsonl": '{"step": 1, "train/loss": 2.0}\n', "run.json": "[]"}, "not hold a JSON object"),
        ({"goodput.json": '{"step": 0, "total": 0}'}, "config.json is missing"),
        ({"metrics.jsonl": b'{"step": 1, "train/loss": 2.0}\n\xff\xfe\x00'}, "cut short"),
    ],
)
def test_any_part_of_a_run_is_enough(tmp_path, files, said):
    for name, content in files.items():
        (tmp_path / name).write_bytes(content if isinstance(content, bytes) else content.encode())
    assert said in " ".join(Audit(write_report(tmp_path).read_text()).words)
    assert summary_lines(tmp_path)[0].startswith("No evaluation")


def test_numbers_that_are_not_finite_leave_gaps(tmp_path):
    lines = [{"step": s, "train/loss": "nan" if s == 5 else "inf" if s == 6 else 1.0 / s, "train/flag": True,
              "train/note": "words"} for s in range(1, 9)]
    lines += [{"step": 9, "train/loss": float("nan"), "eval/x/R@1": float("nan"), "eval/x/R@1/chance": 0.1}]
    (tmp_path / "metrics.jsonl").write_text("\n".join(map(json.dumps, lines)))
    assert "loss" in write_report(tmp_path).read_text()
    assert summary_lines(tmp_path)[0].startswith("No evaluation")


def test_a_resumed_run_counts_a_repeated_step_once(tmp_path):
    steps = [(1, 5.0), (2, 4.0), (3, 999.0), (3, 3.0), (4, 2.0)]
    (tmp_path / "metrics.jsonl").write_text("\n".join(json.dumps({"step": s, "train/loss": v}) for s, v in steps))
    assert load_run(tmp_path).series["train/loss"].values.tolist() == [5, 4, 3, 2]


def test_texts_of_a_run_are_never_markup(tmp_path):
    evil = "<script>alert(1)</script><img src=x onerror=alert(2)>\"'&"
    folder = tmp_path / "<b>run&"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps({evil: evil, "experiment": evil, "seed": evil, "steps": 9}))
    (folder / "run.json").write_text(json.dumps({"argv": [evil], "device": {"kind": evil}, "started": evil}))
    key = f"eval/{evil}/R@1"
    rows = [{"step": s, key: 0.1 * s, f"{key}/chance": 0.01, f"train/{evil}": s} for s in (1, 2, 3)]
    (folder / "metrics.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "goodput.json").write_text(json.dumps({evil: 3.0, "total": 4.0}))
    square = np.zeros((1, 8, 8, 3), np.uint8)
    for name, artifact in {
        "grid": artifacts.retrieval_grid(query_texts=[evil], truth_texts=[evil], result_texts=[[evil]],
                                         result_correct=[[True]], title=evil, caption=evil),
        "confusion": artifacts.confusion([[1]], [evil], title=evil),
        "map": artifacts.embedding_map([[0, 1]], [[1, 0]], labels=[0], names=[evil], thumbnails=square, caption=evil),
        "table": artifacts.table([evil], [[evil]]),
        "histogram": artifacts.histogram([1.0], [0.0], label=evil),
        "odd": {"kind": np.array(evil), evil: np.zeros(2)},
    }.items():
        artifacts.save_artifact(folder, 3, name, artifact)
    text = write_report(folder).read_text()
    audit = Audit(text)
    assert not audit.open
    assert "script" not in audit.tags
    assert not re.search(r"<[^>]*\sonerror=", re.sub(r'"[^"]*"', '""', text))
    assert all(a.startswith(("data:image/png", "#")) for a in audit.addresses)
    assert "<b>run" not in text


def test_unknown_and_damaged_artifacts_are_listed_not_fatal(tmp_path):
    artifacts.save_artifact(tmp_path, 5, "attention", {"kind": np.array("heatmap"), "weights": np.zeros((3, 4))})
    artifacts.save_artifact(tmp_path, 5, "broken", {"kind": np.array("confusion"), "matrix": np.zeros((3, 4))})
    artifacts.save_artifact(tmp_path, 5, "good", artifacts.table(["a"], [["older but whole"]]))
    (tmp_path / "evals" / "6").mkdir()
    (tmp_path / "evals" / "6" / "good.npz").write_bytes(b"PK damaged")
    words = " ".join(Audit(write_report(tmp_path).read_text()).words)
    for said in ("heatmap", "float64 [3, 4]", "broken could not be drawn", "evals/6/good.npz is left out", "older but"):
        assert said in words, said


def test_every_script_is_real_text_and_right_to_left_where_it_is(tmp_path):
    texts = ["笑脸", "وجه بابتسامة عريضة", "दाँत दिखाता चेहरा", "にっこり笑う", "활짝 웃는 얼굴", "широко улыбается"]
    grid = artifacts.retrieval_grid(query_texts=texts, truth_texts=texts, result_texts=[[t, "x"] for t in texts],
                                    result_correct=[[True, False]] * 6)
    artifacts.save_artifact(tmp_path, 1, "languages", grid)
    text = write_report(tmp_path).read_text()
    for t in texts:
        assert t in text
    assert 'dir="auto"' in text


@pytest.mark.parametrize("make", [lambda p: p / "nowhere", lambda p: p])
def test_not_a_run_is_refused(tmp_path, make):
    for call in (write_report, summary_lines):
        with pytest.raises(InputError, match="workdir"):
            call(make(tmp_path))
    assert not (tmp_path / "report").exists()


def test_writing_again_replaces_the_page(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "train/loss": 2.0}\n')
    first = write_report(tmp_path)
    (tmp_path / "metrics.jsonl").write_text('{"step": 77, "train/loss": 2.0}\n')
    assert write_report(tmp_path) == first
    assert "77" in first.read_text()
    assert [p.name for p in first.parent.glob(".*")] == []
