"""The sharded gradient is the single-device gradient, on data where every example differs, over every mesh."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from mixcon import ops
from mixcon.errors import InputError
from mixcon.ops import pairs

MESHES = {
    "1": ((1,), ("data",)),
    "2": ((2,), ("data",)),
    "4": ((4,), ("data",)),
    "8": ((8,), ("data",)),
    "2x4": ((2, 4), ("data", "model")),
}
B, N, D = 24, 40, 5
RNG = np.random.default_rng(5)
Q = jnp.asarray(RNG.normal(size=(B, D)) * np.linspace(0.1, 2, B)[:, None], jnp.float32)
K = jnp.asarray(RNG.normal(size=(N, D)) + np.linspace(-1, 1, N)[:, None], jnp.float32)
Y, YK = RNG.integers(0, 5, B), RNG.integers(0, 5, N)
ROW_WEIGHT, COL_WEIGHT = jnp.linspace(0.2, 3, B), jnp.linspace(2, -1, N)
SPLIT, WHOLE = PartitionSpec("data"), PartitionSpec()


def mesh_of(name, kind=AxisType.Auto):
    shape, names = MESHES[name]
    return jax.make_mesh(shape, names, (kind,) * len(shape), devices=jax.devices()[: int(np.prod(shape))])


def loss(q, k, scale, y, yk, row_weight, col_weight, impl, axis_name=None):
    """Every anchor weighs differently, so a gradient that lands on the wrong device is seen."""
    ce = ops.contrastive_cross_entropy(
        q, k, scale=scale, positives=pairs.same_label(y, yk), symmetric=True, form="in", impl=impl, tile_size=4,
        axis_name=axis_name,
    )  # fmt: skip
    return jnp.sum(ce.rows.loss * row_weight) + jnp.sum(ce.cols.loss * col_weight)


ARGS = (Q, K, jnp.float32(2.0), Y, YK, ROW_WEIGHT, COL_WEIGHT)


@functools.cache
def single():
    return jax.value_and_grad(functools.partial(loss, impl="dense"), (0, 1, 2))(*ARGS)


def close(got, want):
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=2e-5, atol=2e-5 * float(np.max(np.abs(b))))


@pytest.mark.parametrize("impl", ["ring", "gather", "auto"])
@pytest.mark.parametrize("name", ["2", "4", "8", "2x4"])
def test_global_arrays_under_jit(name, impl):
    with jax.set_mesh(mesh_of(name)):
        step = jax.jit(jax.value_and_grad(functools.partial(loss, impl=impl), (0, 1, 2)))
        close(step(*ARGS), single())


def test_the_mesh_is_also_found_from_the_arrays():
    split = NamedSharding(mesh_of("4"), SPLIT)
    args = (jax.device_put(Q, split), jax.device_put(K, split), *ARGS[2:])
    step = jax.jit(jax.value_and_grad(functools.partial(loss, impl="ring"), (0, 1, 2)))
    assert "collective-permute" in step.lower(*args).compile().as_text()
    close(step(*args), single())


def test_a_mesh_of_explicit_axes():
    mesh = mesh_of("8", AxisType.Explicit)
    with jax.set_mesh(mesh):
        args = jax.tree.map(lambda x: jax.device_put(x, NamedSharding(mesh, SPLIT if jnp.ndim(x) else WHOLE)), ARGS)
        close(jax.jit(jax.value_and_grad(functools.partial(loss, impl="ring"), (0, 1, 2)))(*args), single())


def test_one_device_needs_no_ring():
    with jax.set_mesh(mesh_of("1")):
        close(jax.value_and_grad(functools.partial(loss, impl="auto"), (0, 1, 2))(*ARGS), single())
        with pytest.raises(InputError, match="set_mesh"):
            loss(*ARGS, impl="ring")


@pytest.mark.parametrize("size", [13, 3])
def test_devices_need_not_divide_the_batch(size):
    cut = (Q[:size], K[: size + 2], ARGS[2], Y[:size], YK[: size + 2], ROW_WEIGHT[:size], COL_WEIGHT[: size + 2])
    want = jax.value_and_grad(functools.partial(loss, impl="dense"), (0, 1, 2))(*cut)
    with jax.set_mesh(mesh_of("8")):
        close(jax.jit(jax.value_and_grad(functools.partial(loss, impl="ring"), (0, 1, 2)))(*cut), want)


SPECS = (SPLIT, SPLIT, WHOLE, SPLIT, SPLIT, SPLIT, SPLIT)


@pytest.mark.parametrize("impl", ["ring", "gather", "dense"])
@pytest.mark.parametrize("checked", [True, False])
def test_gradient_of_a_mapped_loss(impl, checked):
    """The loss inside shard_map, differentiated outside it."""

    def local(*args):
        return jax.lax.psum(loss(*args, impl=impl, axis_name="data"), "data")

    mapped = jax.shard_map(local, mesh=mesh_of("4"), in_specs=SPECS, out_specs=WHOLE, check_vma=checked)
    close(jax.jit(jax.value_and_grad(mapped, (0, 1, 2)))(*ARGS), single())


@pytest.mark.parametrize("impl", ["ring", "gather"])
def test_gradient_taken_inside_the_map(impl):
    """Each device's loss, differentiated inside: the gradient of the sum, scale included."""

    def local(*args):
        value, gradient = jax.value_and_grad(functools.partial(loss, impl=impl, axis_name="data"), (0, 1, 2))(*args)
        return jax.lax.psum(value, "data"), gradient

    mapped = jax.shard_map(
        local,
        mesh=mesh_of("2x4"),
        in_specs=SPECS,
        out_specs=(WHOLE, (SPLIT, SPLIT, WHOLE)),
        axis_names={"data", "model"},
    )
    close(jax.jit(mapped)(*ARGS), single())


def test_pmap():
    def local(*args):
        value, gradient = jax.value_and_grad(functools.partial(loss, impl="ring", axis_name="i"), (0, 1, 2))(*args)
        return jax.lax.psum(value, "i"), gradient[:2], jax.lax.psum(gradient[2], "i")

    split = [x.reshape(8, -1, *x.shape[1:]) if jnp.ndim(x) else x for x in ARGS]
    axes = tuple(0 if jnp.ndim(x) else None for x in ARGS)
    value, (dq, dk), ds = jax.pmap(local, axis_name="i", in_axes=axes)(*split)
    close((value[0], (dq.reshape(Q.shape), dk.reshape(K.shape), ds[0])), single())


def test_the_ring_holds_no_share_by_batch_buffer():
    """Of B = 2048 over 8 devices, no array of B·b elements; and the keys do travel."""
    x = jax.ShapeDtypeStruct((2048, 16), jnp.float32)
    y, w, s = (jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in (((2048,), jnp.int32), ((2048,), jnp.float32), ((), jnp.float32)))  # fmt: skip  # noqa: E501
    with jax.set_mesh(mesh_of("8")):
        step = jax.jit(jax.value_and_grad(functools.partial(loss, impl="ring"), (0, 1, 2)))
        text = step.lower(x, x, s, y, y, w, w).compile().as_text()
    sizes = [np.prod([int(d) for d in dims.split(",") if d]) for dims in re.findall(r"\w\[([\d,]*)\]", text)]
    assert max(sizes) < 2048 * 2048 / 8
    assert "collective-permute" in text
    assert "all-gather" not in text
