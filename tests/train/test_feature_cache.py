"""Features of a frozen tower, computed once: under a name made from weights and data, whole or not at all."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.data.beside import Beside, Parts
from mixcon.data.pipeline import train_iterator
from mixcon.data.records import BadRecord
from mixcon.data.sources import Arrays, Mapped
from mixcon.errors import InputError
from mixcon.train import feature_cache
from mixcon.train.feature_cache import cached_features
from mixcon.train.mesh import make_mesh

WEIGHTS = {"kernel": np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)}
ROWS = np.random.default_rng(0).normal(size=(23, 4)).astype(np.float32)


@pytest.fixture(autouse=True)
def one_device():
    with jax.set_mesh(make_mesh(data=2, devices=jax.devices()[:2])):
        yield


def encode(weights, batch):
    return {"features": jnp.tanh(batch["x"] @ weights["kernel"])}


def source(rows=ROWS):
    return Arrays({"x": rows, "label": np.arange(len(rows))})


def test_features_are_those_of_the_network_in_the_order_of_the_source(tmp_path):
    found = cached_features(encode, WEIGHTS, source(), folder=tmp_path, batch_size=4, rows=10)
    assert isinstance(found["features"], Parts)
    assert len(found["features"]) == 23
    np.testing.assert_allclose(found["features"][np.arange(23)], np.tanh(ROWS @ WEIGHTS["kernel"]), rtol=1e-5)
    np.testing.assert_array_equal(found["features"][np.array([22, 3, 10])][1], found["features"][3])


def test_nothing_is_computed_twice_and_an_interrupted_part_alone_anew(tmp_path):
    calls = []

    def counted(weights, batch):
        jax.debug.callback(lambda: calls.append(1))
        return encode(weights, batch)

    def run(weights=WEIGHTS, rows=ROWS, **options):
        calls.clear()
        cached_features(counted, weights, source(rows), folder=tmp_path, batch_size=4, rows=8, **options)
        jax.effects_barrier()
        return len(calls)

    assert run() == 6  # 2 + 2 + 2 batches
    assert run() == 0
    (folder,) = tmp_path.iterdir()
    (folder / "part-00001").unlink()
    assert run() == 2
    assert run({"kernel": WEIGHTS["kernel"] + 1e-6}) == run(rows=ROWS * 1.01) == run(about="other words") == 6
    assert len(list(tmp_path.iterdir())) == 4


def test_a_record_that_cannot_be_read_has_no_features_and_is_passed_over(tmp_path):
    def fragile(record):
        if record["label"] == 5:
            raise BadRecord("broken")
        return record

    broken = Mapped(source(), fragile)
    found = cached_features(encode, WEIGHTS, broken, folder=tmp_path, batch_size=4)
    assert np.isnan(found["features"][np.arange(23)]).all(1).nonzero()[0].tolist() == [5]
    beside = Beside(Mapped(source(), lambda r: {"label": r["label"]}), found)
    with pytest.raises(BadRecord, match="no features"):
        beside[5]
    assert beside[6]["features"].shape == (3,)


def test_batches_hold_the_features_and_resume_where_they_stood(tmp_path):
    found = cached_features(encode, WEIGHTS, source(), folder=tmp_path, batch_size=4, rows=7)
    beside = Beside(source(), found, without=("x",))
    assert sorted(beside[0]) == ["features", "label"]

    def batches():
        return train_iterator(beside, batch_size=8, seed=1)

    first = batches()
    next(first)
    place = first.get_state()
    want = next(first)
    assert sorted(want) == ["features", "index", "label", "skipped"]
    np.testing.assert_array_equal(want["features"], found["features"][want["index"]])
    resumed = batches()
    resumed.set_state(place)
    jax.tree.map(np.testing.assert_array_equal, next(resumed), want)


def test_the_name_depends_on_weights_data_and_words():
    names = [
        feature_cache.digest(WEIGHTS, source(), ""),
        feature_cache.digest({"other": WEIGHTS["kernel"]}, source(), ""),
        feature_cache.digest(WEIGHTS, source(ROWS[:-1]), ""),
        feature_cache.digest(WEIGHTS, source(), "words"),
    ]
    assert len(set(names)) == 4
    assert names[0] == feature_cache.digest(jax.tree.map(jnp.asarray, WEIGHTS), source(), "")


def test_bad_input_is_refused(tmp_path):
    with pytest.raises(InputError, match="nothing to compute"):
        cached_features(encode, WEIGHTS, source(ROWS[:0]), folder=tmp_path)
    with pytest.raises(InputError, match="a row for each of the 23"):
        Beside(source(), {"f": np.zeros((22, 3))})
