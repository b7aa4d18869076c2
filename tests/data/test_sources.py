"""Sources read what is there, say what is missing, and never import TensorFlow."""

import io
import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from mixcon.data.records import BadRecord, cover, decode_image, image_text, read
from mixcon.data.sources import Arrays, Cached, ImageParquet, Mapped, Subset, Tfds, sklearn_set
from mixcon.errors import InputError


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


def test_arrays_subset_and_mapped():
    source = Arrays({"x": np.arange(5), "name": list("abcde")})
    doubled = Mapped(Subset(source, [4, 0]), lambda record: record | {"x": 2 * record["x"]})
    assert [(int(record["x"]), record["name"]) for record in read(doubled)] == [(8, "e"), (0, "a")]
    assert len(doubled) == 2
    with pytest.raises(InputError, match="one length"):
        Arrays({"x": [1], "y": [1, 2]})
    with pytest.raises(InputError, match=r"range\(5\)"):
        Subset(source, [5])
    with pytest.raises(IndexError):
        source[5]


def test_reading_passes_over_what_cannot_be_used_and_can_be_sparse():
    class Source:
        def __len__(self):
            return 10

        def __getitem__(self, index):
            if index == 4:
                raise BadRecord("no")
            return {"x": index}

    assert [record["x"] for record in read(Source())] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert [record["x"] for record in read(Source(), at_most=6)] == [0, 2, 6, 8]
    assert [record["x"] for record in read(Source(), at_most=10)] == [0, 1, 2, 3, 5, 6, 7, 8, 9]


def test_cached_reads_each_record_once_bad_ones_too():
    reads = []

    def function(record):
        reads.append(record["x"])
        if record["x"] == 1:
            raise BadRecord("no")
        return record

    source = Cached(Mapped(Arrays({"x": [0, 1]}), function))
    for _ in range(3):
        assert source[0] == {"x": 0}
        with pytest.raises(BadRecord, match="no"):
            source[1]
    assert reads == [0, 1]


@pytest.mark.parametrize(
    ("name", "size", "fields"),
    [
        ("digits", 1797, {"image": (8, 8, 1), "label": ()}),
        ("breast_cancer", 569, {"features": (30,), "label": ()}),
        ("wine", 178, {"features": (13,), "label": ()}),
        ("diabetes", 442, {"features": (10,), "target": ()}),
        ("linnerud", 20, {"features": (3,), "target": (3,)}),
    ],
)
def test_scikit_learn_sets(name, size, fields):
    train, test, whole = (sklearn_set(name, side) for side in ("train", "test", "all"))
    assert len(train) + len(test) == len(whole) == size
    assert {key: np.shape(value) for key, value in whole[0].items()} == fields
    first = next(iter(fields))
    rows = {record[first].tobytes() for record in read(train)}
    shared = sum(record[first].tobytes() in rows for record in read(test))
    assert shared <= size // 50  # equal measurements occur in the data; equal rows must not
    again = sklearn_set(name, "test")
    np.testing.assert_array_equal(again.columns[first], test.columns[first])


def test_the_two_photographs():
    assert sklearn_set("sample_images")[1]["image"].shape == (427, 640, 3)
    with pytest.raises(InputError, match="iris"):
        sklearn_set("iris")
    with pytest.raises(InputError, match="side"):
        sklearn_set("wine", "val")


def test_images_in_parquet(tmp_path):
    cells = [{"bytes": png(Image.new("RGB", (4, 6), (i, 0, 0))), "path": f"{i}.png"} for i in range(3)]
    pq.write_table(
        pa.table({"img": [*cells, {"bytes": b"x", "path": ""}], "label": [5, 6, 7, 8]}), tmp_path / "a.parquet"
    )
    source = ImageParquet(tmp_path / "a.parquet")
    assert source[2]["image"].shape == (6, 4, 3)
    assert int(source[2]["image"][0, 0, 0]) == 2
    assert source[1]["label"] == 6
    assert ImageParquet(tmp_path / "a.parquet", size=(8, 8))[0]["image"].shape == (8, 8, 3)
    with pytest.raises(BadRecord, match="unreadable"):
        source[3]
    with pytest.raises(InputError, match="no column picture; it has img, label"):
        ImageParquet(tmp_path / "a.parquet", image="picture")
    with pytest.raises(InputError, match="no parquet file"):
        ImageParquet(tmp_path / "none.parquet")


def test_transparency_goes_on_white_and_large_images_are_refused():
    clear = Image.new("RGBA", (4, 4), (255, 0, 0, 0))
    assert np.asarray(decode_image(png(clear))).min() == 255
    with pytest.raises(BadRecord, match="4 x 4"):
        decode_image(png(clear), max_pixels=15)


def test_cover_scales_and_cuts_the_centre():
    pixels = np.zeros((20, 60, 3), np.uint8)
    pixels[:, 20:40] = 255
    assert cover(Image.fromarray(pixels), 10, 10)[:, 1:-1].min() == 255
    assert cover(Image.fromarray(pixels), 20, 60).tolist() == pixels.tolist()


def test_image_text_says_what_is_wrong_with_a_record():
    decode = image_text(4, 4)
    good = {"image": png(Image.new("RGB", (5, 5))), "text": " a ", "meta": {"x": 1}, "n": 3}
    assert {key: np.shape(value) for key, value in decode(good).items()} == {"image": (4, 4, 3), "text": (), "n": ()}
    assert decode(good)["text"] == "a"
    with pytest.raises(BadRecord, match="empty caption"):
        decode(good | {"text": " \n"})
    with pytest.raises(BadRecord, match="no image and text"):
        decode({"text": "a"})


BUILD = """
    import io, sys
    import numpy as np
    import tensorflow_datasets as tfds
    from etils import epath
    from PIL import Image

    def png(value):
        buffer = io.BytesIO()
        Image.fromarray(np.full((8, 8, 3), value, np.uint8)).save(buffer, "PNG")
        buffer.seek(0)
        return buffer

    class Tiny(tfds.core.GeneratorBasedBuilder):
        VERSION = tfds.core.Version("1.0.0")
        pkg_dir_path = epath.Path(sys.argv[1])

        def _info(self):
            features = {
                "image": tfds.features.Image(shape=(8, 8, 3)),
                "label": tfds.features.ClassLabel(names=["a", "b"]),
                "caption": tfds.features.Text(),
            }
            return tfds.core.DatasetInfo(builder=self, features=tfds.features.FeaturesDict(features))

        def _split_generators(self, manager):
            return {"train": self._generate_examples(9)}

        def _generate_examples(self, size):
            for i in range(size):
                yield i, {"image": png(10 * i), "label": i % 2, "caption": f"number {i}"}

    Tiny(data_dir=sys.argv[1], file_format="array_record").download_and_prepare()
"""

READ = """
    import json, sys
    from mixcon.data.pipeline import train_iterator
    from mixcon.data.sources import Tfds

    source = Tfds(sys.argv[1], "train[:8]", rename={"image": "image", "label": "label", "caption": "text"})
    records = [source[i] for i in range(len(source))]
    batch = next(train_iterator(source, batch_size=4))
    print(json.dumps({
        "texts": sorted(record["text"] for record in records),
        "agree": all(record["text"] == f"number {record['image'][0, 0, 0] // 10}" for record in records),
        "batch": list(batch["image"].shape),
        "tensorflow": "tensorflow" in sys.modules,
    }))
"""


@pytest.fixture(scope="module")
def tiny_tfds(tmp_path_factory):
    pytest.importorskip("tensorflow_datasets")
    folder = tmp_path_factory.mktemp("tfds")
    subprocess.run([sys.executable, "-c", textwrap.dedent(BUILD), str(folder)], check=True, capture_output=True)
    return folder / "tiny" / "1.0.0"


def test_tfds_is_read_without_tensorflow(tiny_tfds, tmp_path):
    """With a TensorFlow that can be found, but leaves a mark when it is imported."""
    mark = tmp_path / "imported"
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text(f"open({str(mark)!r}, 'w').close()\nraise ImportError\n")
    command = [sys.executable, "-c", textwrap.dedent(READ), str(tiny_tfds)]
    path = os.pathsep.join([str(tmp_path), *filter(None, sys.path)])
    environment = os.environ | {"PYTHONPATH": path}
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
    assert not mark.exists()
    seen = json.loads(done.stdout.splitlines()[-1])
    texts = seen.pop("texts")
    assert len(set(texts)) == 8
    assert set(texts) < {f"number {i}" for i in range(9)}
    assert seen == {"agree": True, "batch": [4, 8, 8, 3], "tensorflow": False}


def test_tfds_mistakes_are_refused_in_words(tiny_tfds, tmp_path):
    with pytest.raises(InputError, match="split 'validation'"):
        Tfds(tiny_tfds, "validation")
    with pytest.raises(InputError, match="array_record"):
        Tfds("no_such_set", data_dir=str(tmp_path))
