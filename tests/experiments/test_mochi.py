"""MoCHi's experiment: batch norm and meshes, the slow encoder, the warm-up, the full size, bad input."""

import io

import jax
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from experiments import mochi
from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.train import loop
from mixcon.train import mesh as meshes

BATCH = 16


@pytest.fixture(autouse=True, scope="module")
def _as_in_training():
    """Promotion as in a run; many small programs, so that compiling is the cost."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield
    jax.config.update("jax_disable_most_optimizations", before)


@pytest.fixture(scope="module")
def convolutional():
    """A net with batch norm on digits that are not augmented: an image gives the same view wherever it stands."""
    config = configs.load(
        "configs/mochi.py:small",
        [
            f"--config.batch_size={BATCH}",
            "--config.objective.size=64",
            "--config.mixer.num_hard=8",
            "--config.mixer.num_mix=4",
            "--config.mixer.num_query_mix=4",
            "--config.mixer.warmup_epochs=0.0",
            "--config.augment=()",
            "--config.model.backbone={'name': 'conv_net', 'widths': (4, 8), 'channels': 1}",
            "--config.teacher_momentum=0.9",
            "--config.pretext_batches=1",
        ],
    )
    return config, mochi.build(config, None)


def steps(config, experiment, devices, batches):
    """The states before, between and after some steps on a mesh, on the host."""
    mesh = meshes.make_mesh(devices=jax.devices()[:devices])
    with jax.set_mesh(mesh):
        _, places = loop.state_layout(experiment, config, mesh)
        states = [loop.first_state(experiment, config, places)]
        step = jax.jit(experiment.step, out_shardings=(places, None))
        for batch in batches:
            states.append(step(states[-1], meshes.put_batch(batch, meshes.batch_sharding(mesh)))[0])
        return jax.device_get(states)


@pytest.fixture(scope="module")
def batches(convolutional):
    iterator = convolutional[1].batches()
    return [loop.device_part(next(iterator)) for _ in range(2)]


@pytest.fixture(scope="module")
def alone(convolutional, batches):
    return steps(*convolutional, 1, batches)


def test_statistics_of_the_keys_do_not_depend_on_the_mesh(convolutional, batches, alone):
    """Batch norm is over the whole batch, so no device's statistics mark the keys that belong to its queries."""
    before, first, after = steps(*convolutional, 8, batches)
    assert any(np.abs(x).max() > 1e-3 for x in jax.tree.leaves(first.extra["teacher_stats"]))
    for got, want in zip((before, first, after), alone, strict=True):
        for part in ("extra", "objective", "params"):
            for one, other in zip(
                jax.tree.leaves(getattr(got, part)), jax.tree.leaves(getattr(want, part)), strict=True
            ):
                np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_a_shuffled_batch_has_the_same_keys(convolutional, batches, alone):
    """What ShuffleBN would do is nothing here: the keys move with their images, and their statistics stay."""
    order = np.random.default_rng(0).permutation(BATCH)
    _, shuffled = steps(*convolutional, 1, [{name: x[order] for name, x in batches[0].items()}])
    straight = alone[1]
    np.testing.assert_allclose(
        shuffled.objective.features[:BATCH], straight.objective.features[:BATCH][order], rtol=1e-4, atol=1e-5
    )
    np.testing.assert_array_equal(shuffled.objective.ids[:BATCH], batches[0]["index"][order])
    for one, other in zip(
        jax.tree.leaves(shuffled.extra["teacher_stats"]), jax.tree.leaves(straight.extra["teacher_stats"]), strict=True
    ):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)


def test_the_teacher_moves_before_each_step_and_is_never_trained(alone):
    """It starts equal, so that the first move leaves it; the second takes a tenth of what the first step changed."""
    before, first, second = alone

    def assert_same(tree, wanted):
        for one, other in zip(jax.tree.leaves(tree), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-5, atol=1e-7)

    assert_same(before.extra["teacher"], before.params)
    assert_same(first.extra["teacher"], before.params)
    moved = jax.tree.map(lambda k, q: 0.9 * k + 0.1 * q, before.params, first.params)
    assert_same(second.extra["teacher"], moved)
    changed = [np.abs(a - b).max() for a, b in zip(*map(jax.tree.leaves, (before.params, first.params)), strict=True)]
    assert max(changed) > 1e-3


def test_evaluations(convolutional, alone):
    _, experiment = convolutional
    with jax.set_mesh(meshes.make_mesh(devices=jax.devices()[:1])):
        found = dict(experiment.evals["test"](alone[-1]))
    assert list(found) == ["probe", "knn", "uniformity", "alignment", "proxy_accuracy", "queue_accuracy"]
    assert 0.1 < found["probe"] <= 1
    assert 0 <= found["proxy_accuracy"] <= found["queue_accuracy"] <= 1
    assert found["uniformity"] < 0 <= found["alignment"] <= 4


def test_warm_up_is_counted_in_epochs_and_none_is_moco():
    config = configs.load("configs/mochi.py:small")
    assert mochi.read_mixing(config, 9.375) == (64, 32, 32, False, 47, None)
    config = configs.load("configs/mochi.py:small", ["--config.mixer.name=none"])
    assert mochi.read_mixing(config, 9.375) is None


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("mixer.name=moco", "none (MoCo) or mochi"),
        ("mixer.num_hard=1000", "num_hard=1000 must lie in 1..512"),
        ("teacher_momentum=1.5", "must lie in [0, 1]"),
        ("objective.temperature=0.0", "temperature must be finite and above zero"),
    ],
)
def test_bad_input_is_refused_before_anything_is_compiled(override, words, tmp_path):
    config = configs.load("configs/mochi.py:small", [f"--config.{override}"])
    with pytest.raises(InputError) as refused:
        mochi.build(config, tmp_path)
    assert words in str(refused.value)


@pytest.mark.slow
def test_full_size_traces(tmp_path, monkeypatch):
    """ResNet-50 at 224 pixels over a mesh, on a folder of the layout that the config asks for."""
    rng = np.random.default_rng(0)
    cells = []
    for _ in range(8):
        buffer = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (40, 60, 3), np.uint8)).save(buffer, "JPEG")
        cells.append({"bytes": buffer.getvalue(), "path": None})
    (tmp_path / "imagenet100").mkdir()
    for side in ("train", "valid"):
        table = pa.table({"image": cells, "label": list(range(8))})
        pq.write_table(table, tmp_path / "imagenet100" / f"{side}.parquet")
    monkeypatch.setenv("MIXCON_DATA", str(tmp_path))
    config = configs.load("configs/mochi.py:imagenet100", ["--config.batch_size=8"])
    mesh = meshes.make_mesh(data=4, model=2)
    with jax.set_mesh(mesh):
        experiment = loop.build(config, tmp_path)
        shapes, places = loop.state_layout(experiment, config, mesh)
        batch = loop.device_part(next(experiment.batches()))
        assert batch["image"].shape == (8, 256, 256, 3)
        after, metrics = jax.eval_shape(experiment.step, shapes, batch)
    assert jax.tree.structure(after) == jax.tree.structure(shapes)
    assert metrics["proxy_accuracy"].shape == ()
    assert after.objective.features.shape == (16_384, 128)
    assert all(place.is_fully_replicated for place in jax.tree.leaves(places.objective)), "the queue is everywhere"
    assert sum(np.prod(leaf.shape) for leaf in jax.tree.leaves(shapes.params)) > 27e6
