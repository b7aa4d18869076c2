"""Where arrays live."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from mixcon.errors import InputError
from mixcon.train import mesh as meshes

STATE = {
    "params": {"mlp": {"kernel": jnp.ones((64, 128)), "bias": jnp.ones(128)}, "odd": jnp.ones((63, 65))},
    "opt": {"mu": {"mlp": {"kernel": jnp.ones((64, 128)), "bias": jnp.ones(128)}}},
}


def specs(tree):
    return jax.tree.map(lambda s: s.spec, tree)


def test_rules_serve_parameters_and_their_moments():
    mesh = meshes.make_mesh(data=2, model=4)
    found = specs(meshes.shardings(STATE, mesh, rules=((r"mlp/kernel$", (None, "model")),)))
    assert found["params"]["mlp"]["kernel"] == found["opt"]["mu"]["mlp"]["kernel"] == P(None, "model")
    assert found["params"]["mlp"]["bias"] == P(None)


def test_fsdp_splits_the_largest_dimension_that_divides():
    mesh = meshes.make_mesh(data=4, model=2)
    found = specs(meshes.shardings(STATE, mesh, rules=((r"mlp/kernel$", (None, "model")),), fsdp=True))
    assert found["params"]["mlp"]["kernel"] == P("data", "model")
    assert found["params"]["odd"] == P(None, None)
    assert found["params"]["mlp"]["bias"] == P(None)  # too small to be worth it


def test_a_rule_that_does_not_divide_is_refused():
    with pytest.raises(InputError, match=r"odd \(63, 65\) is not divisible by model=4"):
        meshes.shardings(STATE, meshes.make_mesh(data=2, model=4), rules=((r"odd$", (None, "model")),))


@pytest.mark.parametrize(("data", "model"), [(9, 1), (-1, 3), (8, 2), (0, 1)])
def test_a_mesh_must_fit_the_devices(data, model):
    with pytest.raises(InputError, match="8 devices"):
        meshes.make_mesh(data=data, model=model)


def test_a_batch_must_divide_and_the_message_says_what_would():
    mesh = meshes.make_mesh(data=8)
    meshes.check_batch(64, mesh)
    with pytest.raises(InputError, match="try 96 or 104"):
        meshes.check_batch(100, mesh)
    with pytest.raises(InputError, match="micro-batches"):
        meshes.check_batch(72, mesh, parts=2)


def test_put_batch_keeps_the_global_order():
    batch = {"x": np.arange(16, dtype=np.int32)}
    put = meshes.put_batch(batch, meshes.batch_sharding(meshes.make_mesh(data=8)))
    np.testing.assert_array_equal(put["x"], batch["x"])
    assert put["x"].addressable_shards[3].data.tolist() == [6, 7]
