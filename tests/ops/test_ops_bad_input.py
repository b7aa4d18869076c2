"""Mistakes are refused before anything is compiled, naming the argument."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import ops
from mixcon.errors import InputError
from mixcon.ops import checks, pairs

Q, K = jnp.ones((4, 3)), jnp.ones((5, 3))
CE = ops.contrastive_cross_entropy

REFUSED = {
    "queries have D = 3 but keys have D = 2": lambda: CE(Q, jnp.ones((5, 2))),
    "must be [B, D] and [N, D]": lambda: CE(Q[0], K),
    "must not be empty": lambda: CE(Q, K[:0]),
    "share one floating dtype": lambda: CE(Q, K.astype(jnp.bfloat16)),
    "floating dtype, got int32": lambda: CE(Q.astype(int), K.astype(int)),
    "scale must be finite and above zero": lambda: CE(Q, K, scale=0.0),
    "scale must be finite and above zero, got -1": lambda: CE(Q, K, scale=jnp.array([1.0, 1.0, -1.0, 1.0])),
    "col_scale must be finite": lambda: CE(Q, K, col_scale=np.nan, symmetric=True),
    "scale must be a scalar or one per anchor [4], got shape (3,)": lambda: CE(Q, K, scale=jnp.ones(3)),
    "needs col_scale too": lambda: CE(Q, K, scale=jnp.ones(4), symmetric=True),
    "bias must be a scalar": lambda: CE(Q, K, bias=jnp.ones(4)),
    "rows['positives'] must have one entry for each of the 4 queries": lambda: CE(
        Q, K, positives=pairs.same_label(np.zeros(3, int), np.zeros(5, int))
    ),
    "cols['positives'] must have one entry for each of the 5 keys": lambda: CE(
        Q, K, positives=pairs.same_label(np.zeros(4, int))
    ),
    "row_mask must have one entry for each of the 4 queries": lambda: CE(Q, K, row_mask=np.ones(5, bool)),
    "labels must be one label each [B]": lambda: pairs.same_label(np.zeros((4, 2), int)),
    "weight must be finite and not negative": lambda: pairs.mixed(np.arange(4), np.array([0.1, -0.1, 1, 1])),
    "weight must be finite and not negative, got nan": lambda: pairs.slots(np.arange(4), np.full(4, np.nan)),
    "matrix must be finite and not negative": lambda: pairs.dense(np.full((4, 5), -1.0)),
    "partner and weight must both be": lambda: pairs.mixed(np.arange(4), np.ones(3)),
    "ids and weight must have one shape": lambda: pairs.slots(np.zeros((4, 2), int), np.ones(4)),
    "size must be at least 1": lambda: pairs.block(0),
    "impl must be one of auto, dense": lambda: CE(Q, K, impl="fast"),
    "form must be 'out' or 'in'": lambda: CE(Q, K, form="mean"),
    "positives: 2 of the queries have none, e.g. [0, 3]": lambda: CE(
        Q, K, positives=pairs.same_label(np.array([8, 1, 2, 9]), np.array([0, 1, 2, 3, 4])), empty="error"
    ),
    "empty='error' looks at values": lambda: jax.jit(lambda q: CE(q, K, empty="error").rows.loss)(Q),
    "impl='ring' needs a mesh": lambda: CE(Q, K, impl="ring"),
    "row_keys must be [B, M, D]": lambda: CE(Q, K, row_keys=jnp.ones((4, 3))),
    "tile_size must be positive": lambda: CE(Q, K, impl="tiled", tile_size=0),
    "positions are 32-bit": lambda: jax.eval_shape(CE, jax.ShapeDtypeStruct((2**31, 1), jnp.float32), K[:, :1]),
    "features must have rows of unit length": lambda: checks.unit_norm("features", 2 * Q),
}


@pytest.mark.parametrize("message", REFUSED)
def test_refused_in_words(message):
    with pytest.raises(InputError) as caught:
        REFUSED[message]()
    assert message in str(caught.value)


def test_a_scale_that_is_traced_cannot_be_looked_at():
    assert np.isfinite(jax.jit(lambda s: CE(Q, K, scale=s).rows.loss.sum())(2.0))


def test_two_yes_no_matrices_join_but_weights_do_not():
    weighted = 0.5 * pairs.identity() | pairs.everything()
    with pytest.raises(InputError, match="add weighted ones"):
        weighted.matrix(3, 3)
