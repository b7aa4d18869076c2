"""Weighted negatives and prototypes: the original's numbers, plain loops, and what is refused."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import objectives as o
from mixcon.errors import InputError
from mixcon.ops import pairs

GOLDEN = np.load(pathlib.Path(__file__).parent.parent / "golden" / "meow.npz")


def golden(name, dtype=jnp.float64):
    value = GOLDEN[name]
    return jnp.asarray(value, dtype) if value.dtype.kind == "f" else jnp.asarray(value, jnp.int32)


def close(got, name, rtol=1e-7):
    np.testing.assert_allclose(got, GOLDEN[name], rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_cluster_weighted_loss_and_gradients_are_the_originals(impl):
    with jax.enable_x64(True):
        assignments = jnp.stack([golden("c0/in/assign0"), golden("c0/in/assign1")])

        def loss(anchor, target):
            return o.cluster_weighted_info_nce(anchor, target, assignments, temperature=golden("c0/in/tau"), impl=impl)

        value, grads = jax.value_and_grad(loss, argnums=(0, 1))(golden("c0/in/z_anchor"), golden("c0/in/z"))
    close(value, "c0/out/info_nce")
    close(grads[0], "c0/out/info_grad_z_anchor")
    close(grads[1], "c0/out/info_grad_z")


def test_prototype_loss_and_gradient_are_the_originals():
    with jax.enable_x64(True):
        assignments = jnp.stack([golden("c0/in/assign0"), golden("c0/in/assign1")])
        prototypes = [golden(f"c0/in/centroids{k}") for k in range(2)]
        densities = [golden(f"c0/in/density{k}") for k in range(2)]

        def loss(anchor):
            return o.prototype_nce(anchor, prototypes, densities, assignments)

        value, grad = jax.value_and_grad(loss)(golden("c0/in/z_anchor"))
    close(value, "c0/out/proto_nce")
    close(grad, "c0/out/proto_grad_z_anchor")


@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_adaptive_loss_and_gradients_are_the_originals(impl):
    """The vector's `z_anchor` is what the loss is anchored at: in AdaMEOW the fine view."""
    with jax.enable_x64(True):
        network = o.PairMlp(
            golden("c1/in/mlp/0.weight").T,
            golden("c1/in/mlp/0.bias"),
            golden("c1/in/mlp/2.weight")[0],
            golden("c1/in/mlp/2.bias")[0],
        )

        def loss(anchor, target, network):
            return o.adaptive_weighted_info_nce(anchor, target, network, temperature=golden("c1/in/tau"), impl=impl)

        value, (anchor, target, net) = jax.jit(jax.value_and_grad(loss, argnums=(0, 1, 2)))(
            golden("c1/in/z_anchor"), golden("c1/in/z"), network
        )
    close(value, "c1/out/loss")
    close(anchor, "c1/out/grad_z_anchor")
    close(target, "c1/out/grad_z")
    close(net.hidden.T, "c1/out/grad_mlp/0.weight")
    close(net.hidden_bias, "c1/out/grad_mlp/0.bias")
    close(net.output[None], "c1/out/grad_mlp/2.weight")
    close(net.output_bias[None], "c1/out/grad_mlp/2.bias")


def unit(seed, rows=6, dim=4):
    x = np.random.default_rng(seed).normal(size=(rows, dim)).astype(np.float32)
    return x / np.linalg.norm(x, axis=1, keepdims=True)


def loop(a, t, w, tau):
    total = 0.0
    for i in range(len(a)):
        below = sum(w[i][j] * np.exp(a[i] @ t[j] / tau) for j in range(len(t)))
        total -= np.log(np.exp(a[i] @ t[i] / tau) / below)
    return total / len(a)


def test_weights_are_those_of_the_loop():
    a, t = unit(0), unit(1)
    w = np.random.default_rng(2).uniform(0.1, 2, (6, 6)).astype(np.float32)
    off = w * (1 - np.eye(6))
    got = o.weighted_info_nce(jnp.asarray(a), jnp.asarray(t), w, temperature=0.5)
    np.testing.assert_allclose(got, loop(a, t, w, 0.5), rtol=1e-5)
    got = o.weighted_info_nce(jnp.asarray(a), jnp.asarray(t), w, temperature=0.5, include_positive=False)
    np.testing.assert_allclose(got, loop(a, t, off, 0.5), rtol=1e-5)
    got = o.weighted_info_nce(jnp.asarray(a), jnp.asarray(t), w, temperature=0.5, symmetric=True)
    np.testing.assert_allclose(got, (loop(a, t, w, 0.5) + loop(t, a, w.T, 0.5)) / 2, rtol=1e-5)
    plain = o.weighted_info_nce(jnp.asarray(a), jnp.asarray(t), None, temperature=0.5)
    np.testing.assert_allclose(plain, o.info_nce(jnp.asarray(a), jnp.asarray(t), temperature=0.5), rtol=1e-6)


def test_shared_clusters_take_weight_away():
    a, t = unit(0), unit(1)
    y = np.array([[0, 0, 1, 1, 2, 2], [0, 1, 1, 0, 0, 0]])
    w = np.array([[sum(int(c[i] != c[j]) for c in y) for j in range(6)] for i in range(6)], float)
    got = o.cluster_weighted_info_nce(jnp.asarray(a), jnp.asarray(t), y, temperature=0.3)
    np.testing.assert_allclose(got, loop(a, t, w, 0.3), rtol=1e-5)
    got = o.cluster_weighted_info_nce(jnp.asarray(a), jnp.asarray(t), y, temperature=0.3, include_positive=True)
    np.testing.assert_allclose(got, loop(a, t, w + 2 * np.eye(6), 0.3), rtol=1e-5)


def test_a_low_temperature_does_not_overflow():
    a = jnp.asarray(unit(0))
    y = jnp.asarray([[0, 0, 1, 1, 2, 2]])
    value, grad = jax.value_and_grad(lambda a: o.cluster_weighted_info_nce(a, a, y, temperature=0.005))(a)
    assert jnp.isfinite(value)
    assert jnp.isfinite(grad).all()


def test_bad_input_is_refused():
    a = jnp.asarray(unit(0))
    with pytest.raises(InputError, match="all rows in one cluster"):
        o.cluster_weighted_info_nce(a, a, np.zeros((2, 6), np.int32), temperature=0.5)
    with pytest.raises(InputError, match=r"assignments must be \[M, B\]"):
        o.cluster_weighted_info_nce(a, a, np.zeros(6, np.int32), temperature=0.5)
    with pytest.raises(InputError, match="whole numbers"):
        o.cluster_weighted_info_nce(a, a, np.zeros((1, 6), np.float32), temperature=0.5)
    with pytest.raises(InputError, match="weights must be"):
        o.weighted_info_nce(a, a, np.ones((5, 6), np.float32), temperature=0.5)
    with pytest.raises(InputError, match="not negative"):
        o.weighted_info_nce(a, a, -np.ones((6, 6), np.float32), temperature=0.5)
    with pytest.raises(InputError, match="temperature must be"):
        o.weighted_info_nce(a, a, pairs.not_self(), temperature=0.0)
    prototypes, own = [jnp.ones((3, 4))], np.array([[0, 1, 2, 0, 1, 2]])
    with pytest.raises(InputError, match="densities must be finite and above zero"):
        o.prototype_nce(a, prototypes, [jnp.array([0.1, 0.0, 0.1])], own)
    with pytest.raises(InputError, match=r"assignments must be in range\(3\)"):
        o.prototype_nce(a, prototypes, [jnp.ones(3)], own + 1)
    with pytest.raises(InputError, match="one for each clustering"):
        o.prototype_nce(a, prototypes, [], own)
    with pytest.raises(InputError, match="network takes 5 features"):
        o.adaptive_weighted_info_nce(a, a, o.pair_mlp(jax.random.key(0), dim=5), temperature=0.5)
