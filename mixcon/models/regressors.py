"""Networks for tables and time series, in two halves so that hidden features can be mixed between them.

`features(x)` gives arrays with the batch as first axis, `head(features)` the prediction; the call does both. A mixer
that is applied to every array of the features is manifold mixup.

Shapes: B batch, T time steps, P window, m series, D outputs.
"""

import functools
import itertools
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make
from mixcon.models.layers import dropout, split_key


def uniform(bound: float) -> jax.nn.initializers.Initializer:
    """Uniform on [-bound, bound]; with bound = 1/√fan_in it is the initialiser of PyTorch's layers."""

    draw = jax.nn.initializers.uniform(2 * bound)  # on [0, 2 bound)

    def init(key: Array, shape: Any, dtype: Any = jnp.float32, out_sharding: Any = None) -> Array:
        return draw(key, shape, dtype) - bound

    return init


def linear(in_features: int, out_features: int, rngs: nnx.Rngs, *, fan_in: int | None = None) -> nnx.Linear:
    """A linear layer with PyTorch's initialisation: weights and bias uniform on ±1/√fan_in."""
    init = uniform((fan_in or in_features) ** -0.5)
    return nnx.Linear(in_features, out_features, kernel_init=init, bias_init=init, rngs=rngs)


def leaky_relu(x: Array) -> Array:
    """x, or 0.1 x where it is negative."""
    return jnp.where(x > 0, x, 0.1 * x)


class Mlp(nnx.Module):
    """Linear and LeakyReLU(0.1), `depth` times, then a linear layer."""

    def __init__(self, in_features: int, out_features: int, *, hidden: int, depth: int, rngs: nnx.Rngs):
        widths = [in_features, *[hidden] * depth, out_features]
        self.layers = nnx.List([linear(a, b, rngs) for a, b in itertools.pairwise(widths)])

    def features(self, x: Array, *, train: bool = False, key: Array | None = None) -> Array:
        """[B, in_features] -> [B, hidden]: the first block."""
        return leaky_relu(self.layers[0](x))

    def head(self, x: Array, *, train: bool = False, key: Array | None = None) -> Array:
        """[B, hidden] -> [B, D]."""
        for layer in self.layers[1:-1]:
            x = leaky_relu(layer(x))
        return self.layers[-1](x)

    def __call__(self, x: Array, *, train: bool = False, key: Array | None = None) -> Array:
        """[B, in_features] -> [B, D]."""
        return self.head(self.features(x))


def mlp(*, in_features: int, out_features: int = 1, hidden: int = 128, depth: int = 2) -> Make:
    """A multi-layer perceptron for tables, as a constructor: LeakyReLU(0.1), PyTorch's initialisation.

    Raises:
        InputError: a size below 1.

    Example:
        >>> make = mlp(in_features=5)
    """
    if min(in_features, out_features, hidden, depth) < 1:
        raise InputError("in_features, out_features, hidden and depth of mlp must all be at least 1.")
    return functools.partial(_mlp, in_features, out_features, hidden=hidden, depth=depth)


def _mlp(in_features: int, out_features: int, rngs: nnx.Rngs, **options: Any) -> Mlp:
    return Mlp(in_features, out_features, rngs=rngs, **options)


class Gru(nnx.Module):
    """One gated recurrent layer, read to its last state; gates in the order reset, update, new.

    r, z = σ(W x + U h + ...);  n = tanh(W_n x + b + r ⊙ (U_n h + c));  h ← (1 - z) ⊙ n + z ⊙ h.
    """

    def __init__(self, in_features: int, hidden: int, *, rngs: nnx.Rngs):
        self.input = linear(in_features, 3 * hidden, rngs, fan_in=hidden)
        self.recurrent = linear(hidden, 3 * hidden, rngs, fan_in=hidden)

    def __call__(self, x: Array) -> Array:
        """[B, T, in_features] -> [B, hidden]."""
        hidden = self.recurrent.in_features
        seen = jnp.swapaxes(self.input(x), 0, 1)  # [T, B, 3h]: one product for all steps

        def step(h: Array, seen: Array) -> tuple[Array, None]:
            own = self.recurrent(h)
            r, z = jnp.split(jax.nn.sigmoid(seen[:, : 2 * hidden] + own[:, : 2 * hidden]), 2, axis=1)
            new = jnp.tanh(seen[:, 2 * hidden :] + r * own[:, 2 * hidden :])
            return (1 - z) * new + z * h, None

        return jax.lax.scan(step, jnp.zeros((x.shape[0], hidden), x.dtype), seen)[0]


class LstNet(nnx.Module):
    """Convolution over all series, a recurrent layer, one that skips whole periods, and a linear highway per series."""

    def __init__(
        self,
        *,
        series: int,
        window: int,
        kernel: int,
        conv: int,
        hidden: int,
        skip: int,
        skip_hidden: int,
        highway: int,
        dropout: float,
        rngs: nnx.Rngs,
    ):
        self.skip, self.highway_steps, self.dropout = skip, highway, dropout
        self.kernel, self.periods = kernel, (window - kernel) // skip
        self.conv = linear(kernel * series, conv, rngs)
        self.gru = Gru(conv, hidden, rngs=rngs)
        self.gru_skip = Gru(conv, skip_hidden, rngs=rngs)
        self.out = linear(hidden + skip * skip_hidden, series, rngs)
        self.highway = linear(highway, 1, rngs)

    def features(self, x: Array, *, train: bool = False, key: Array | None = None) -> dict[str, Array]:
        """[B, P, m] -> the convolution's output [B, P-kernel+1, conv], and the steps [B, highway, m] of the highway."""
        steps = x.shape[1] - self.kernel + 1
        patches = jnp.concatenate([x[:, k : k + steps] for k in range(self.kernel)], axis=-1)
        hidden = dropout(jax.nn.relu(self.conv(patches)), self.dropout, key=key, train=train)
        return {"conv": hidden, "recent": x[:, -self.highway_steps :]}

    def head(self, features: dict[str, Array], *, train: bool = False, key: Array | None = None) -> Array:
        """Features -> [B, m]."""
        x, keys = features["conv"], split_key(key, 2)
        batch = x.shape[0]
        long = dropout(self.gru(x), self.dropout, key=keys[0], train=train)
        phases = x[:, -self.periods * self.skip :].reshape(batch, self.periods, self.skip, -1)
        phases = jnp.swapaxes(phases, 1, 2).reshape(batch * self.skip, self.periods, -1)
        cyclic = dropout(self.gru_skip(phases).reshape(batch, -1), self.dropout, key=keys[1], train=train)
        straight = self.highway(jnp.swapaxes(features["recent"], 1, 2))[..., 0]
        return self.out(jnp.concatenate([long, cyclic], axis=-1)) + straight

    def __call__(self, x: Array, *, train: bool = False, key: Array | None = None) -> Array:
        """[B, P, m] -> [B, m]."""
        keys = split_key(key, 2)
        return self.head(self.features(x, train=train, key=keys[0]), train=train, key=keys[1])


def lstnet(
    *,
    series: int,
    window: int = 168,
    kernel: int = 6,
    conv: int = 100,
    hidden: int = 100,
    skip: int = 24,
    skip_hidden: int = 5,
    highway: int = 24,
    dropout: float = 0.2,
) -> Make:
    """LSTNet for forecasts of several series, as a constructor: no output activation, PyTorch's initialisation.

    Args:
        series: m.
        window: P, time steps that it reads.
        kernel, conv: length and channels of the convolution.
        hidden: width of the recurrent layer.
        skip, skip_hidden: period of the skipping one, and its width.
        highway: last steps that the linear part reads.
        dropout: rate after the convolution and both recurrent layers.

    Raises:
        InputError: sizes that do not fit the window; a rate outside [0, 1).

    Example:
        >>> make = lstnet(series=8, conv=50, hidden=50)

    Reference:
        Lai, Chang, Yang, Liu, "Modeling Long- and Short-Term Temporal Patterns with Deep Neural Networks", 2018
    """
    if min(series, kernel, conv, hidden, skip, skip_hidden, highway) < 1:
        raise InputError("all sizes of lstnet must be at least 1.")
    if window - kernel < skip or window < highway:
        raise InputError(f"window={window} must hold kernel={kernel} plus one skip={skip}, and highway={highway}.")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout={dropout} must lie in [0, 1).")
    return functools.partial(
        _lstnet, series=series, window=window, kernel=kernel, conv=conv, hidden=hidden, skip=skip,
        skip_hidden=skip_hidden, highway=highway, dropout=dropout,
    )  # fmt: skip


def _lstnet(rngs: nnx.Rngs, **options: Any) -> LstNet:
    return LstNet(rngs=rngs, **options)
