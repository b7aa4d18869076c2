"""C-Mixup's step against the original code, its arms, and what it refuses."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from run_files import measured

from experiments import cmixup
from mixcon import config as configs
from mixcon import models
from mixcon.data.catalog import locate
from mixcon.data.sources import Arrays
from mixcon.errors import InputError
from mixcon.train import loop

RNG = np.random.default_rng(0)
BATCH = {"x": RNG.normal(size=(8, 3)).astype(np.float32), "y": RNG.normal(size=(8, 1)).astype(np.float32)}  # 4 couples


def mixer(**changes):
    given = dict(partner="label", kernel="gaussian", bandwidth=1.0, alpha=2.0, per="batch", at="hidden")
    return ml_collections.ConfigDict(given | changes)


@pytest.fixture(scope="module")
def model():
    return models.functional(models.mlp(in_features=3, hidden=8))


@pytest.fixture(scope="module")
def params(model):
    return jax.jit(model.init)(jax.random.key(0))[0]


@pytest.fixture(scope="module", autouse=True)
def _quick_compiles():
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def step_of(task):
    """(params, batch, seed) -> representations, loss and prepared batch of one step."""

    def run(params, batch, seed):
        keys = jax.random.split(jax.random.key(seed), 3)
        batch = task.prepare(batch, key=keys[0], step=jnp.zeros((), jnp.int32))
        reps, _ = task.encode(params, {}, batch, key=keys[1], train=True)
        return reps, task.objective(params, {}, reps, batch, key=keys[2], step=0)[0], batch

    return jax.jit(run)


@pytest.mark.parametrize("at", ["input", "hidden"])
def test_loss_and_gradients_are_those_of_the_original_code(at):
    with np.load("tests/golden/cmixup.npz") as arrays:
        case = {
            key[3:]: arrays[key].astype(np.float32) for key in arrays.files if key[:3] == "c1/" and "kind" not in key
        }
    params = {
        "layers": {
            str(n): {"kernel": jnp.asarray(case[f"in/w{n + 1}"].T), "bias": jnp.asarray(case[f"in/b{n + 1}"])}
            for n in range(3)
        }
    }
    task = cmixup.mixing_task(mixer(at=at), models.functional(models.mlp(in_features=5, hidden=16)))

    @jax.jit
    def loss(params, x1, x2):
        batch = {
            "x": jnp.stack([x1, x2], axis=1),
            "y": jnp.stack([case["in/y1"], case["in/y2"]], axis=1),
            "weight": jnp.full(6, case["in/lam"]),
        }
        reps, _ = task.encode(params, {}, batch, key=jax.random.key(0), train=True)
        return task.objective(params, {}, reps, batch, key=None, step=0)[0], reps

    (value, reps), grads = jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(
        params, case["in/x1"], case["in/x2"]
    )
    suffix = "manifold" if at == "hidden" else "input"
    assert_allclose(reps["y"], case["out/mix_y"], rtol=1e-5, atol=1e-6)
    assert_allclose(reps["pred"], case[f"out/pred_{suffix}"], rtol=1e-5, atol=1e-6)
    assert_allclose(value, case[f"out/loss_{suffix}"], rtol=1e-5)
    found = {"grad_x1": grads[1], "grad_x2": grads[2], "grad_w1": grads[0]["layers"]["0"]["kernel"].T}
    for name, grad in found.items():
        expected = case[f"out/{name}_{suffix}"]
        assert_allclose(grad, expected, rtol=1e-5, atol=1e-5 * np.abs(expected).max())


def test_alone_is_plain_regression(model, params):
    reps, loss, _ = step_of(cmixup.mixing_task(mixer(partner="none"), model))(params, BATCH, 0)
    pred = model.apply(params, {}, BATCH["x"])[0]
    assert_array_equal(reps["y"], BATCH["y"])
    assert_allclose(loss, np.mean((np.asarray(pred) - BATCH["y"]) ** 2), rtol=1e-5)


def test_couples_are_mixed_by_one_weight_per_batch(model, params):
    reps, _, batch = step_of(cmixup.mixing_task(mixer(), model))(params, BATCH, 0)
    lam = np.asarray(batch["weight"])
    assert (lam == lam[0]).all()
    assert 0 < lam[0] < 1
    assert_allclose(reps["y"], lam[0] * BATCH["y"][0::2] + (1 - lam[0]) * BATCH["y"][1::2], rtol=1e-5)
    each = cmixup.mixing_task(mixer(per="example"), model).prepare(BATCH, key=jax.random.key(0), step=0)["weight"]
    assert len(set(np.asarray(each).tolist())) == 4


@pytest.mark.parametrize("partner", ["label_in_batch", "representation"])
def test_in_the_batch_the_partner_is_one_of_the_pool_that_is_close(model, params, partner):
    """Two far clusters: whoever is drawn is of the same one, in label or in hidden features."""
    side = np.array([0, 1, 1, 0, 0, 0, 1, 1], np.float32)  # of the pool, couples in turn
    near, free = side[:, None] * 50, RNG.normal(size=(8, 1)).astype(np.float32)
    labels = partner == "label_in_batch"
    batch = {"x": np.tile(free if labels else near, (1, 3)), "y": near if labels else near + free}
    step = step_of(cmixup.mixing_task(mixer(partner=partner, bandwidth=1.0 if labels else 0.1), model))
    for seed in range(5):
        reps, _, prepared = step(params, batch, seed)
        lam, own = float(prepared["weight"][0]), batch["y"][0::2]
        drawn = (np.asarray(reps["y"]) - lam * own) / (1 - lam)
        candidates = np.abs(drawn[:, None, 0] - batch["y"][None, :, 0]) < 1e-2 / (1 - lam)
        assert (candidates.any(axis=1)).all(), "somebody of the pool"
        assert_array_equal(np.round(drawn[:, 0] / 50), side[0::2])


def test_rows_that_are_no_couples_are_refused(model):
    odd = {name: rows[:7] for name, rows in BATCH.items()}
    with pytest.raises(InputError, match="even number of rows, not 7"):
        cmixup.mixing_task(mixer(), model).prepare(odd, key=jax.random.key(0), step=0)


def test_samplers_read_a_partner_along_unless_examples_stay_alone():
    train = Arrays({"x": RNG.normal(size=(20, 3)).astype(np.float32), "y": np.arange(20.0, dtype=np.float32)[:, None]})
    config = ml_collections.ConfigDict(dict(batch_size=4, seed=1, data=dict(reshuffle=False)))
    for partner, rows in (("none", 4), ("uniform", 8), ("label", 8), ("input", 8), ("label_in_batch", 8)):
        config.mixer = mixer(partner=partner, bandwidth=0.5)
        sample = cmixup.sampler(config, train)
        assert len(sample(0)) == rows
        own = sample(6)[:: rows // 4]
        assert_array_equal(own, np.arange(4, 8)), "without reshuffling every epoch has the same batches"
        if partner == "label":
            drawn = np.concatenate([sample(step) for step in range(40)])
            assert np.abs(drawn[0::2] - drawn[1::2]).max() <= 3
            assert np.abs(drawn[0::2] - drawn[1::2]).max() > 0
    config.data.reshuffle = True
    assert (cmixup.sampler(config, train)(0) != cmixup.sampler(config, train)(5)).any()


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["mixer.bandwidth=0.0"], "bandwidth must be > 0"),
        (["mixer.alpha=-1.0"], "alpha must be > 0"),
        (["mixer.partner=labels"], "did you mean .*label"),
        (["mixer.at=middle"], "mixer.at"),
        (["mixer.kernel=box"], "gaussian"),
        (["batch_size=2000"], "larger than the data set of 1003"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_it_is_compiled(overrides, words, tmp_path):
    config = configs.load("configs/cmixup.py:small", [f"--config.{each}" for each in overrides])
    with pytest.raises(InputError, match=words):
        loop.build(config, tmp_path)


def test_labels_that_are_not_finite_are_refused():
    train = Arrays({"x": np.zeros((5, 3), np.float32), "y": np.array([[0], [1], [np.nan], [2], [3]], np.float32)})
    config = ml_collections.ConfigDict(dict(batch_size=2, seed=1, data=dict(reshuffle=True), mixer=mixer()))
    with pytest.raises(InputError, match="first in row 2"):
        cmixup.sampler(config, train)


@pytest.mark.slow
def test_exchange_rates_are_learned(tmp_path):
    """Two epochs on the real series: the error falls well below that of the first."""
    try:
        locate("cmixup")
    except InputError as reason:
        pytest.skip(str(reason))
    overrides = ("steps=68", "eval_every=34", "log_every=34", "checkpoint.every=68", "mesh.data=1")
    config = configs.load("configs/cmixup.py:exchange_rate", [f"--config.{each}" for each in overrides])
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        loop.train(config, tmp_path, progress=False)
    errors = [line["eval/valid/rmse"] for line in measured(tmp_path) if "eval/valid/rmse" in line]
    assert len(errors) == 2
    assert errors[1] < 0.8 * errors[0]
