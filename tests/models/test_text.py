"""The text transformer: what it may see, and which token stands for the text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.errors import InputError
from mixcon.models import text_transformer

TINY = {"vocab_size": 30, "context_length": 8, "width": 16, "depth": 1, "heads": 2}
IDS = np.array([[5, 9, 4, 2, 0, 0, 0, 0], [7, 3, 8, 6, 2, 0, 0, 0], [9, 9, 1, 4, 8, 6, 3, 5]], np.int32)


@pytest.fixture(scope="module")
def tower(drawn):
    """tower(**options) -> run(ids, mask?, method=?); every tower has the same parameters."""

    def make(**options):
        model, params, extra = drawn(text_transformer(**(TINY | {"pool": "mean"} | options)))
        run = jax.jit(model.apply, static_argnames="method")
        return lambda ids, *mask, method=None: np.asarray(run(params, extra, ids, *mask, method=method)[0])

    return make


@pytest.fixture(scope="module")
def causal(tower):
    return tower(causal=True)


def test_future_tokens_do_not_change_earlier_outputs(causal):
    changed = IDS.copy()
    changed[:, 5:] = 11
    before, after = causal(IDS, method="tokens"), causal(changed, method="tokens")
    np.testing.assert_allclose(before[:, :5], after[:, :5], rtol=0, atol=1e-6)
    assert np.abs(before[:, 5:] - after[:, 5:]).max() > 1e-3


def test_bidirectional_towers_see_the_future(tower):
    both = tower(causal=False)
    changed = IDS.copy()
    changed[:, 7] = 11
    assert np.abs(both(IDS, method="tokens")[:, 0] - both(changed, method="tokens")[:, 0]).max() > 1e-5


@pytest.mark.parametrize(("causal", "pool"), [(True, "eos"), (False, "mean"), (False, "last")])
def test_what_stands_in_the_padding_does_not_matter(tower, causal, pool):
    run = tower(causal=causal, pool=pool, eos_id=2)
    mask = IDS != 0
    other = np.where(mask, IDS, 17)
    np.testing.assert_allclose(run(IDS, mask), run(other, mask), rtol=0, atol=1e-6)
    np.testing.assert_allclose(run(IDS[:2], mask[:2]), run(IDS[:2, :5], mask[:2, :5]), rtol=0, atol=1e-6)


def test_pad_id_is_the_mask(tower):
    padded, explicit = tower(causal=False, pad_id=0), tower(causal=False)
    np.testing.assert_allclose(padded(IDS), explicit(IDS, IDS != 0), rtol=0, atol=1e-6)
    assert np.abs(padded(IDS)[:2] - explicit(IDS)[:2]).max() > 1e-3


@pytest.mark.parametrize(
    ("options", "positions"),
    [
        ({"pool": "eos", "eos_id": 2}, [3, 4, 7]),  # the third has no end token: its last one
        ({"pool": "eos", "eos_id": 9}, [1, 7, 0]),  # the first of several
        ({"pool": "argmax"}, [1, 2, 0]),
        ({"pool": "last"}, [7, 7, 7]),
        ({"pool": "last", "pad_id": 0}, [3, 4, 7]),
        ({"pool": "eos", "eos_id": 21, "pad_id": 0}, [3, 4, 7]),
        ({"pool": "cls", "causal": False}, [0, 0, 0]),
    ],
)
def test_pooled_position(tower, options, positions):
    run = tower(**options)
    np.testing.assert_allclose(run(IDS), run(IDS, method="tokens")[np.arange(3), positions], rtol=0, atol=1e-6)


def test_mean_pool_counts_real_tokens_only(tower):
    run = tower(causal=False, pad_id=0)
    tokens, mask = run(IDS, method="tokens"), IDS != 0
    expected = [tokens[i][mask[i]].mean(0) for i in range(3)]
    np.testing.assert_allclose(run(IDS), expected, rtol=1e-5, atol=1e-6)


def test_a_row_of_padding_gives_finite_values_and_gradients(drawn):
    model, params, extra = drawn(text_transformer(**TINY, pool="mean", causal=False, pad_id=0))
    ids = jnp.zeros((2, 8), jnp.int32)
    value, gradient = jax.jit(jax.value_and_grad(lambda p: jnp.sum(model.apply(p, extra, ids)[0] ** 2)))(params)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves((value, gradient)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"pool": "eos"}, "needs eos_id="),
        ({"pool": "max"}, "pool='max' is unknown"),
        ({"pool": "cls"}, "causal=False"),
        ({"pool": "eos", "eos_id": 30}, r"eos_id=30 must be in \[0, vocab_size=30\)"),
        ({"pool": "mean", "pad_id": -1}, "pad_id=-1"),
        ({"pool": "mean", "context_length": 0}, "context_length=0"),
        ({"pool": "mean", "width": None}, "Give size="),
    ],
)
def test_bad_arguments_are_refused(options, message):
    with pytest.raises(InputError, match=message):
        text_transformer(**(TINY | options))


def test_bad_ids_are_refused(causal):
    with pytest.raises(InputError, match="9 tokens exceed context_length=8"):
        causal(np.zeros((2, 9), np.int32))
    with pytest.raises(InputError, match="must be integers"):
        causal(np.zeros((2, 8), np.float32))
    with pytest.raises(InputError, match=r"shape \[batch, tokens\]"):
        causal(np.zeros(8, np.int32))
