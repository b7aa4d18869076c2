"""CWCL: the frozen tower is outside the state, its cached features are what it says, and what is refused."""

import jax
import numpy as np
import pytest

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.train import loop

DIGITS = "'name': 'mixcon.data.digit_views.digit_views'"
TINY = (
    f"data.train={{{DIGITS}, 'keep': 100}}",
    f"data.evals={{'test': {{{DIGITS}, 'side': 'test'}}}}",
    f"data.classes={{{DIGITS}, 'keep': 50}}",
    "batch_size=16",
    "steps=3",
    "log_every=1",
    "checkpoint.every=3",
    "views=('fou', 'pix')",
    "tower.backbone.widths=(76, 8)",
    f"frozen.training.data.train={{{DIGITS}, 'side': 'test'}}",
    "frozen.training.view=pix",
    "frozen.training.tower.backbone.widths=(240, 8)",
    "frozen.training.steps=2",
)


@pytest.fixture(autouse=True, scope="module")
def _standard_promotion():
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        yield


def config(*overrides):
    changed = {each.partition("=")[0] for each in overrides}
    kept = [each for each in TINY if each.partition("=")[0] not in changed]
    return configs.load("configs/cwcl.py:small", [f"--config.{each}" for each in (*kept, *overrides)])


def test_cached_features_are_the_frozen_tower_s_and_neither_is_in_the_state(tmp_path):
    states = {}
    for cached in (True, False):
        workdir = tmp_path / str(cached)
        states[cached] = loop.train(config(f"frozen.cached={cached}"), workdir, progress=False)
        assert set(states[cached].params) == {"trained", "logit_scale"}
    leaves = [jax.tree.leaves(jax.device_get(states[cached].params)) for cached in (True, False)]
    for one, other in zip(*leaves, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-6)
    held = sum(np.size(leaf) for leaf in jax.tree.leaves(states[False].opt_state))
    trained = sum(leaf.size for leaf in jax.tree.leaves(states[False].params["trained"]))
    assert held <= 2 * trained + 2, "the temperature is fixed, and has no moments"
    lines = (tmp_path / "True" / "metrics.jsonl").read_text()
    assert '"eval/test/zero_shot"' in lines


def test_bad_input_is_refused_in_words(tmp_path):
    for overrides, message in (
        (("views=('speech', 'pix')",), "no field 'speech'"),
        (("frozen.kind=magic",), "frozen.kind='magic' is unknown"),
        (("gradient.name=mixcon.train.gradients.accumulate", "gradient.parts=2"), "belong to the whole batch"),
    ):
        with pytest.raises(InputError, match=message):
            loop.build(config(*overrides), tmp_path)
