"""The contrastive gap and the behaviour of contrastive loss as experiments: what their studies rest on."""

import jax
import numpy as np
import pytest

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.train import loop
from mixcon.train import mesh as meshes
from mixcon.train.state import init_state


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def load(name, *overrides):
    short = ("steps=4", "log_every=1", "checkpoint.every=4", "eval_every=-1")
    return configs.load(f"configs/{name}", [f"--config.{each}" for each in (*short, *overrides)])


def test_without_a_gap_at_first(tmp_path):
    from experiments.contrastive_gap import before_and_after

    found = before_and_after(load("contrastive_gap.py:digits_idealized"), tmp_path)
    assert found["before/centroid_distance"] < 0.2
    assert 0.5 < found["before/R@1"] <= found["before/R@3"] <= found["before/R@10"], "most find their own"
    assert found["after/centroid_distance"] != found["before/centroid_distance"]


def test_equal_views_are_identical_inputs_and_others_are_not(tmp_path):
    for views, equal in ((("pix", "pix"), True), (("pix", "fou"), False)):
        variant = "digits_idealized" if equal else "digits"
        experiment = loop.build(load(f"contrastive_gap.py:{variant}", f"views={views}"), tmp_path)
        params = init_state(experiment, np.uint32(0), ema=False).params
        shapes = {name: jax.tree.map(np.shape, tower) for name, tower in params.items()}
        assert (shapes["first"] == shapes["second"]) == equal
        kernels = [jax.tree.leaves(params[name])[-1] for name in ("first", "second")]
        assert not np.allclose(*kernels), "independent initialisations"


def test_a_view_that_records_lack_is_said(tmp_path):
    with pytest.raises(InputError, match="no field 'zer'"):
        loop.build(load("contrastive_gap.py:digits", "views=('pix', 'zer')"), tmp_path)


def test_what_is_no_pair_of_views_is_said(tmp_path):
    packaged = ("data.train.views=('pix', 'fou')",)  # ALIGN's own tables have to be fetched
    for name, more in (("contrastive_gap.py:digits", ()), ("align.py:digits", packaged), ("isogclr.py:small", ())):
        with pytest.raises(InputError, match="must be two names of fields"):
            loop.build(load(name, "views=('pix',)", *more), tmp_path)


def test_a_loss_without_a_memory_s_slots_is_said(tmp_path):
    with pytest.raises(InputError, match="positive_index"):
        loop.build(load("contrastive_behaviour.py:small", "objective={'name': 'mixcon.objectives.clip'}"), tmp_path)


@pytest.mark.parametrize("name", ["clip.py:small", "align.py:small"])
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("zero_shot=foo", "zero_shot must be a sequence of dicts"),
        ("zero_shot=({'on': 'concept', 'label': 'gruop', 'prompts': (('a', ('a',)),)},)", "no 'gruop'"),
        ("zero_shot=({'on': 'concept', 'label': 'group', 'prompts': (('a', ('a',)), ('b', ()))},)", "same number"),
        ("probes=({'on': 'concept', 'label': 'group'},)", "probes must be a sequence of dicts"),
    ],
)
def test_a_task_of_the_evaluation_is_refused_before_training(name, change, message, tmp_path):
    with pytest.raises(InputError, match=message):
        loop.build(load(name, change), tmp_path)


def test_one_pair_at_a_time_is_refused(tmp_path):
    with pytest.raises(InputError, match="one pair at a time"):
        loop.train(load("vlp_baselines.py:digits", "batch_size=1"), tmp_path, progress=False)


def test_the_second_strong_view_may_have_a_pipeline_of_its_own(tmp_path):
    config = load("vlp_baselines.py:digits", "augment.strong=()")
    with config.unlocked():
        config.augment.strong2 = ({"name": "mixcon.data.features.drop_features", "rate": 0.5},)
    x = np.random.default_rng(0).uniform(1, 2, size=(2, 240)).astype(np.float32)
    batch = {"pix": x, "fou": x[:, :76], "index": np.arange(2)}
    task = loop.build(config, tmp_path).task
    views = np.asarray(task.prepare(batch, key=jax.random.key(0), step=0)["pix_views"])
    np.testing.assert_array_equal(views[:, 0], x)
    assert 0.3 < (views[:, 1] == 0).mean() < 0.7


def test_the_published_probe_is_the_paper_s():
    fit = configs.partial(configs.load("configs/contrastive_behaviour.py:cifar10").probe)
    x = np.random.default_rng(0).normal(size=(40, 3))
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    probe = fit(x, (x[:, 0] > 0).astype(int), classes=2)
    assert (probe.scores(x).argmax(1) == (x[:, 0] > 0)).mean() > 0.9
    assert fit.keywords["learning_rate"] == 30.0
    assert tuple(fit.keywords["at"]) == (40, 60, 80)


@pytest.mark.slow
def test_the_geometry_of_what_was_learned(tmp_path):
    config = load("contrastive_behaviour.py:small", "data.train.train_size=1600")
    experiment = loop.build(config, tmp_path)
    state = loop.train(config, tmp_path, progress=False)
    assert state.objective.features.shape == (1600, 32)
    with jax.set_mesh(meshes.make_mesh(**config.mesh)):
        found = dict(experiment.evals["test"](state))
    profile = [found[f"profile/nearest_{rank}"] for rank in range(1, 11)]
    assert profile == sorted(profile, reverse=True)
    assert 0 < found["uniformity"] < 4
    assert all(-1 <= found[name] <= 1 for name in ("tolerance", "profile/positive"))
    assert found["knn"] > 0.5


@pytest.mark.parametrize("slug", ["contrastive_gap", "contrastive_behaviour"])
def test_every_arm_of_the_studies_is_a_config_that_resolves(slug):
    study = configs.read_module(f"configs/{slug}.py").get_study()
    arms = {arm for table in study.tables.values() for arm in table.arms.values()}
    texts = {configs.to_json(load(f"{slug}.py:{arm.config}", *arm.overrides)) + arm.measure for arm in arms}
    assert len(texts) == len(arms), "no two arms are the same run"
