"""The seam between modules and pure functions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from mixcon.errors import InputError
from mixcon.models import count, flatten, functional, map_with_path, path_names, unflatten
from mixcon.models.functional import remat, scan_stack, stack


class Net(nnx.Module):
    """Two layers and a batch norm: the smallest module with parameters in a list and other state."""

    def __init__(self, rngs):
        self.layers = nnx.List([nnx.Linear(3, 3, rngs=rngs) for _ in range(11)])
        self.norm = nnx.BatchNorm(3, momentum=0.5, rngs=rngs)

    def __call__(self, x, *, train=False, key=None):
        for layer in self.layers:
            x = layer(x)
        x = self.norm(x, use_running_average=not train)
        return x if key is None else x + jax.random.normal(key, x.shape)

    def first(self, x, *, train=False, key=None):
        return self.layers[0](x)


@pytest.fixture(scope="module")
def net():
    model = functional(Net)
    return model, *jax.jit(model.init)(jax.random.key(0))


X = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float32)


def test_params_and_extra_are_plain_dicts_with_readable_paths(net):
    _, params, extra = net
    assert type(params) is dict
    assert type(params["layers"]["10"]) is dict
    assert path_names(params)[:2] == ["layers/0/bias", "layers/0/kernel"]
    assert "layers/10/kernel" in path_names(params)
    assert path_names(extra) == ["norm/mean", "norm/var"]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves((params, extra)))
    assert count(params) == 11 * 12 + 6


def test_list_entries_keep_their_own_values(net):
    model, params, extra = net
    changed = map_with_path(lambda path, x: x + 1.0 if path == "layers/2/bias" else x, params)
    expected = X
    for i in range(11):  # "10" sorts before "2" as a string: position must not decide
        layer = changed["layers"][str(i)]
        expected = expected @ np.asarray(layer["kernel"]) + np.asarray(layer["bias"])
    got, _ = model.apply(changed, extra, X, method=lambda m, x, train, key: chain(m.layers, x))
    np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def chain(layers, x):
    for layer in layers:
        x = layer(x)
    return x


def test_eval_leaves_extra_alone_and_train_updates_it(net):
    model, params, extra = net
    _, same = model.apply(params, extra, X)
    assert same is extra
    _, new = model.apply(params, extra, X, train=True)
    before_norm, _ = model.apply(params, extra, X, method=lambda m, x, train, key: chain(m.layers, x))
    np.testing.assert_allclose(new["norm"]["mean"], 0.5 * np.asarray(before_norm).mean(0), rtol=1e-5, atol=1e-6)
    assert not np.any(np.asarray(extra["norm"]["mean"]))  # the argument itself is not changed


def test_method_by_name_and_key(net):
    model, params, extra = net
    first, _ = model.apply(params, extra, X, method="first")
    np.testing.assert_allclose(first, X @ params["layers"]["0"]["kernel"], rtol=1e-5, atol=1e-6)
    noisy = [model.apply(params, extra, X, key=jax.random.key(seed))[0] for seed in (1, 1, 2)]
    np.testing.assert_array_equal(noisy[0], noisy[1])
    assert np.any(noisy[0] != noisy[2])


def test_init_is_traceable_and_can_be_sharded(net):
    model, params, _ = net
    abstract, _ = jax.eval_shape(model.init, jax.random.key(0))
    assert jax.tree.map(lambda x: (x.shape, x.dtype), abstract) == jax.tree.map(lambda x: (x.shape, x.dtype), params)
    mesh = Mesh(np.array(jax.devices()[:3]), ("data",))

    def rule(path, x):
        return NamedSharding(mesh, P("data") if path.endswith("kernel") else P())

    shardings = tuple(map_with_path(rule, tree) for tree in jax.eval_shape(model.init, jax.random.key(0)))
    sharded, _ = jax.jit(model.init, out_shardings=shardings)(jax.random.key(0))
    assert sharded["layers"]["3"]["kernel"].addressable_shards[0].data.shape == (1, 3)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), sharded, params)


def test_new_values_do_not_trace_again(net):
    model, params, extra = net
    traces = []

    @jax.jit
    def step(params, extra, x, key):
        traces.append(1)
        return model.apply(params, extra, x, key=key, train=True)

    for seed in range(3):
        params, extra = jax.tree.map(lambda x: x * 0.9, params), step(params, extra, X * seed, jax.random.key(seed))[1]
    assert len(traces) == 1


def test_other_trees_are_refused_by_name(net):
    model, params, extra = net
    broken = unflatten({k: v for k, v in flatten(params).items() if k != "layers/3/bias"} | {"layers/3/gain": X})
    with pytest.raises(InputError, match=r"params does not fit.*missing \['layers/3/bias'\].*\['layers/3/gain'\]"):
        model.apply(broken, extra, X)
    with pytest.raises(InputError, match="extra does not fit"):
        model.apply(params, {}, X)


def test_stored_random_state_is_refused():
    with pytest.raises(InputError, match="stores random state"):
        functional(lambda rngs: nnx.Dropout(0.5, rngs=rngs))


def test_flatten_and_unflatten_are_inverse(net):
    _, params, _ = net
    assert jax.tree.structure(unflatten(flatten(params))) == jax.tree.structure(params)
    assert list(flatten(params)) == path_names(params)


def test_map_with_path_takes_more_trees_and_other_containers():
    tree = ({"a": 1, "b": {"c": 2}}, [3])
    assert map_with_path(lambda path, x, y: (path, x + y), tree, tree) == (
        {"a": ("0/a", 2), "b": {"c": ("0/b/c", 4)}},
        [("1/0", 6)],
    )


class Stack(nnx.Module):
    def __init__(self, rngs):
        self.blocks = stack(lambda rngs: nnx.Linear(3, 3, rngs=rngs), 4, rngs)

    def __call__(self, x, *, train=False, key=None):
        return scan_stack(self.blocks, lambda layer, x, shift: jnp.tanh(layer(x)) + shift, x, jnp.arange(4.0))


def test_a_scanned_stack_runs_its_layers_in_order():
    model = functional(Stack)
    params, extra = model.init(jax.random.key(0))
    kernels = np.asarray(params["blocks"]["kernel"])
    assert kernels.shape == (4, 3, 3)
    assert np.abs(kernels[0] - kernels[1]).max() > 0.01  # each layer has its own draw
    expected = X
    for i in range(4):
        expected = np.tanh(expected @ kernels[i]) + i
    np.testing.assert_allclose(model.apply(params, extra, X)[0], expected, rtol=1e-5, atol=1e-5)


class Remat(Net):
    def __call__(self, x, *, train=False, key=None):
        def inside(layer, x):
            return layer(x, use_running_average=not train)

        return remat(inside)(self.norm, chain(self.layers, x))


def test_rematerialised_steps_keep_values_gradients_and_statistics(net):
    plain, params, extra = net
    saved = functional(Remat)

    def run(model):
        def loss(params):
            out, new = model.apply(params, extra, X, train=True)
            return jnp.sum(out**3), new

        return jax.jit(jax.value_and_grad(loss, has_aux=True))(params)

    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), run(plain), run(saved))
