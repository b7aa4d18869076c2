"""Transformer layers. Shapes: B batch, T tokens, D width, H heads, K head width.

Parameters are float32; `dtype` is what matrix products are computed in. Layer norms and the softmax are
always float32. Randomness comes in as `key`; `key=None` is allowed where nothing random happens.
"""

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array
from jax.sharding import AxisType, PartitionSpec

from mixcon.errors import InputError
from mixcon.models.functional import remat, scan_stack, stack

FLOAT32 = np.dtype("float32")


def gelu(x: Array) -> Array:
    """`x Φ(x)`, with `erf`: the `erfc` of `jax.nn.gelu` is computed in two ways for every element."""
    return x * (0.5 * (1.0 + jax.lax.erf(x * 0.5**0.5)))


ACTIVATIONS: dict[str, Callable[[Array], Array]] = {
    "gelu": gelu,
    "gelu_tanh": functools.partial(jax.nn.gelu, approximate=True),
    "quick_gelu": lambda x: x * jax.nn.sigmoid(jnp.asarray(1.702, x.dtype) * x),
    "relu": jax.nn.relu,
}
REMAT_POLICIES: dict[Any, Any] = {  # what a block keeps for its backward pass; False keeps all, True only its input
    True: None,
    "full": None,
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
}


Hook = Callable[[str, Array], Array]
"""Sees (and may replace) the value at a named place of a forward pass: `hook(place, value) -> value`."""


def unchanged(place: str, value: Array) -> Array:
    """The hook that does nothing."""
    return value


def normal(std: float) -> jax.nn.initializers.Initializer:
    """Normal initialiser with the given standard deviation."""
    return jax.nn.initializers.normal(std)


def float_dtype(dtype: Any) -> np.dtype:
    """The compute dtype by name ("float32", "bfloat16", "float16") or as a dtype."""
    try:
        result = jnp.dtype(dtype)
    except TypeError:
        result = np.dtype(object)
    if result not in (jnp.float32, jnp.bfloat16, jnp.float16):
        raise InputError(f"dtype={dtype!r} is not a compute dtype; use 'float32', 'bfloat16' or 'float16'.")
    return result


def by_example(x: Array) -> Array:
    """The same values [B, ...], on a mesh with an axis `data` each example's on the device that has the example.

    Without this the compiler may split activations the way parameters are split (`sharding.fsdp`) instead of gathering
    the parameters, and then holds whole batches.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = dict(zip(mesh.axis_names, mesh.axis_types or (), strict=True))
    if axes.get("data") != AxisType.Auto or mesh.shape["data"] == 1 or x.shape[0] % mesh.shape["data"]:
        return x
    others = [PartitionSpec.UNCONSTRAINED] * (x.ndim - 1)
    return jax.lax.with_sharding_constraint(x, PartitionSpec("data", *others))


def choose(value: Any, options: Any, what: str) -> Any:
    """`value` if it is one of `options`, else an `InputError` that names them."""
    if value not in options:
        raise InputError(f"{what}={value!r} is unknown; choose one of {', '.join(map(repr, options))}.")
    return value


def split_key(key: Array | None, num: int) -> list[Array] | list[None]:
    """`num` keys from one, or `num` Nones from None."""
    return [None] * num if key is None else list(jax.random.split(key, num))


def require_key(key: Array | None, what: str) -> Array:
    """`key`, or an `InputError` when a random layer was given none."""
    if key is None:
        raise InputError(f"{what} with train=True draws random numbers: pass key= to apply.")
    return key


def dropout(x: Array, rate: float, *, key: Array | None, train: bool) -> Array:
    """Zeroes elements with probability `rate` and rescales the rest, when training."""
    if not train or rate == 0.0:
        return x
    keep = jax.random.bernoulli(require_key(key, "dropout"), 1.0 - rate, x.shape)
    return jnp.where(keep, x / jnp.asarray(1.0 - rate, x.dtype), jnp.zeros_like(x))


def drop_path(branch: Array, rate: Array | float, *, key: Array | None) -> Array:
    """Zeroes the whole residual branch of an example with probability `rate` (stochastic depth)."""
    shape = (branch.shape[0],) + (1,) * (branch.ndim - 1)
    keep = 1.0 - jnp.asarray(rate, jnp.float32)
    kept = jax.random.bernoulli(require_key(key, "stochastic depth"), keep, shape)
    return branch * (kept.astype(jnp.float32) / keep).astype(branch.dtype)


def attend(q: Array, k: Array, v: Array, mask: Array | None = None, *, causal: bool = False) -> Array:
    """`softmax(q kᵀ / sqrt(K)) v` for q [B,T,H,K], k and v [B,S,H,K], mask bool [B,1|H,1|T,S]; softmax in float32."""
    # In bfloat16 the library's function itself promotes implicitly, which a strict session would refuse.
    with jax.numpy_dtype_promotion("standard"):
        return jax.nn.dot_product_attention(q, k, v, mask=mask, is_causal=causal)


class LayerNorm(nnx.LayerNorm):
    """Layer norm computed in float32 whatever comes in, returned in the compute dtype."""

    def __init__(self, width: int, *, eps: float, dtype: np.dtype, rngs: nnx.Rngs):
        # The two-pass variance: E[x²] - E[x]² loses digits on the large means of trained class tokens.
        super().__init__(width, epsilon=eps, dtype=jnp.float32, use_fast_variance=False, rngs=rngs)
        self.out_dtype = dtype

    def __call__(self, x: Array, *, mask: Array | None = None) -> Array:
        return super().__call__(x.astype(jnp.float32), mask=mask).astype(self.out_dtype)


class Mlp(nnx.Module):
    """`fc2(activation(fc1(x)))`."""

    def __init__(
        self,
        width: int,
        hidden: int,
        *,
        activation: str,
        dtype: np.dtype,
        out_std: float,
        in_std: float | None = None,
        rngs: nnx.Rngs,
    ):
        self.activation = choose(activation, ACTIVATIONS, "activation")
        in_std = (2 * width) ** -0.5 if in_std is None else in_std
        self.fc1 = nnx.Linear(width, hidden, kernel_init=normal(in_std), dtype=dtype, rngs=rngs)
        self.fc2 = nnx.Linear(hidden, width, kernel_init=normal(out_std), dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return self.fc2(ACTIVATIONS[self.activation](by_example(self.fc1(x))))


class SelfAttention(nnx.Module):
    """Multi-head self-attention with one fused projection.

    The columns of `qkv/kernel` are ordered (head, q|k|v, K): splitting them over a mesh axis gives each device
    whole heads, so tensor parallelism needs no reshuffle.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        qkv_bias: bool,
        dtype: np.dtype,
        out_std: float,
        in_std: float | None = None,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        in_std = width**-0.5 if in_std is None else in_std
        self.qkv = nnx.Linear(width, 3 * width, use_bias=qkv_bias, kernel_init=normal(in_std), dtype=dtype, rngs=rngs)
        self.out = nnx.Linear(width, width, kernel_init=normal(out_std), dtype=dtype, rngs=rngs)

    def __call__(self, x: Array, mask: Array | None = None, *, causal: bool = False) -> Array:
        """x [B,T,D]; mask bool [B,T], False where a token must not be attended to."""
        mask_B11T = None if mask is None else mask[:, None, None, :]
        q, k, v = (self.project(x, i) for i in range(3))
        mixed = attend(q, k, v, mask_B11T, causal=causal)
        return self.out(mixed.reshape(x.shape))

    def project(self, x: Array, which: int) -> Array:
        """Queries, keys or values [B,T,H,K] of x [B,T,D]: one at a time is faster than all at once taken apart."""
        kernel_DHK = self.qkv.kernel[...].reshape(x.shape[-1], self.heads, 3, -1)[:, :, which]
        out = jnp.einsum("btd,dhk->bthk", x.astype(self.qkv.dtype), kernel_DHK.astype(self.qkv.dtype))
        if self.qkv.bias is not None:
            out += self.qkv.bias[...].reshape(self.heads, 3, -1)[None, None, :, which].astype(out.dtype)
        return by_example(out)

    def weights(self, x: Array) -> Array:
        """What each token attends to: softmax of the scores, float32 [B,H,T,T], for x [B,T,D] without a mask."""
        q, k = (self.project(x, i).astype(jnp.float32) for i in range(2))
        scores = jnp.einsum("bthk,bshk->bhts", q, k) / q.shape[-1] ** 0.5
        return jax.nn.softmax(scores, axis=-1)


class CrossAttention(nnx.Module):
    """Multi-head attention of queries over tokens of another kind, with separate projections."""

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        out_features: int,
        context_width: int | None = None,
        dtype: np.dtype,
        rngs: nnx.Rngs,
    ):
        self.heads = heads
        self.q, self.k, self.v = (
            nnx.Linear(fan_in, width, kernel_init=normal(fan_in**-0.5), dtype=dtype, rngs=rngs)
            for fan_in in (width, context_width or width, context_width or width)
        )
        self.out = nnx.Linear(width, out_features, kernel_init=normal(width**-0.5), dtype=dtype, rngs=rngs)

    def __call__(self, query: Array, tokens: Array) -> Array:
        """query [B,Q,D], tokens [B,T,context_width] -> [B,Q,out_features]."""
        projected = (self.q(query), self.k(tokens), self.v(tokens))
        q, k, v = (by_example(x).reshape(*x.shape[:2], self.heads, -1) for x in projected)
        mixed = attend(q, k, v)
        return self.out(mixed.reshape(*mixed.shape[:2], -1))


@dataclasses.dataclass(frozen=True)
class BlockConfig:
    """What a tower says about its blocks; checked when it is made."""

    width: int
    depth: int
    heads: int
    mlp_dim: int
    activation: str = "gelu"
    qkv_bias: bool = True
    norm_eps: float = 1e-6
    dropout: float = 0.0  # on both residual branches
    residual_dropout: float = 0.0  # on the residual stream itself, where it enters each block
    stochastic_depth: float = 0.0  # of the last block; grows linearly from 0 at the first
    dtype: np.dtype = FLOAT32
    remat: bool | str = False  # False | True | "full" | "dots"
    scan_layers: bool = False  # one compiled block, parameters stacked over depth
    post_norm: bool = False  # norms after the residual sums, as in BERT, not at the start of the branches
    init_std: float | None = None  # of all matrices; None: as CLIP's, which depend on width and depth

    def __post_init__(self) -> None:
        for name in ("width", "depth", "heads", "mlp_dim"):
            if getattr(self, name) < 1:
                raise InputError(f"{name}={getattr(self, name)} must be at least 1.")
        if self.width % self.heads:
            raise InputError(f"width={self.width} must be a multiple of heads={self.heads}.")
        for name in ("dropout", "residual_dropout", "stochastic_depth"):
            if not 0.0 <= getattr(self, name) < 1.0:
                raise InputError(f"{name}={getattr(self, name)} must be in [0, 1).")
        choose(self.activation, ACTIVATIONS, "activation")
        if self.remat is not False:
            choose(self.remat, REMAT_POLICIES, "remat")


class Block(nnx.Module):
    """`x + attn(norm1(x))`, then `x + mlp(norm2(x))`; post-norm: `norm1(x + attn(x))`, then `norm2(x + mlp(x))`."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        c, self.config = config, config
        # Residual branches start small, the more so the deeper the tower.
        out_std = (2 * c.depth * c.width) ** -0.5 if c.init_std is None else c.init_std
        norm = functools.partial(LayerNorm, c.width, eps=c.norm_eps, dtype=c.dtype, rngs=rngs)
        self.norm1, self.norm2 = norm(), norm()
        part: dict[str, Any] = {"dtype": c.dtype, "in_std": c.init_std, "out_std": out_std, "rngs": rngs}
        self.attn = SelfAttention(c.width, c.heads, qkv_bias=c.qkv_bias, **part)
        self.mlp = Mlp(c.width, c.mlp_dim, activation=c.activation, **part)

    def __call__(
        self,
        x: Array,
        mask: Array | None = None,
        *,
        causal: bool = False,
        train: bool = False,
        key: Array | None = None,
        drop_rate: Array | float = 0.0,
    ) -> Array:
        keys = split_key(key, 4)
        if self.config.residual_dropout and train:
            whole = jax.random.fold_in(require_key(key, "dropout"), 4)
            x = dropout(x, self.config.residual_dropout, key=whole, train=train)

        def branch(y: Array, dropout_key: Array | None, path_key: Array | None) -> Array:
            y = dropout(y, self.config.dropout, key=dropout_key, train=train)
            return drop_path(y, drop_rate, key=path_key) if train and self.config.stochastic_depth else y

        if self.config.post_norm:
            x = self.norm1(x + branch(self.attn(x, mask, causal=causal), keys[0], keys[1]))
            return self.norm2(x + branch(self.mlp(x), keys[2], keys[3]))
        x = x + branch(self.attn(self.norm1(x), mask, causal=causal), keys[0], keys[1])
        return x + branch(self.mlp(self.norm2(x)), keys[2], keys[3])


def make_blocks(config: BlockConfig, rngs: nnx.Rngs) -> nnx.Module:
    """The blocks of a tower: a list, or one stack over depth when `config.scan_layers`."""
    if config.scan_layers:
        return stack(functools.partial(Block, config), config.depth, rngs)
    return nnx.List([Block(config, rngs) for _ in range(config.depth)])


def run_blocks(
    blocks: Any,
    config: BlockConfig,
    x: Array,
    mask: Array | None = None,
    *,
    causal: bool = False,
    train: bool,
    key: Array | None,
    hook: Hook = unchanged,
) -> Array:
    """x [B,T,D] through all blocks, each rematerialised in the backward pass when `config.remat`.

    `hook("block0", x)` sees what enters the first block, and so on.
    """
    rates = np.linspace(0.0, config.stochastic_depth, config.depth, dtype=np.float32)
    keys = None if key is None else jax.random.split(key, config.depth)

    def step(block: Block, x: Array, layer_key: Array | None, rate: Array) -> Array:
        return by_example(block(by_example(x), mask, causal=causal, train=train, key=layer_key, drop_rate=rate))

    if config.remat:
        step = remat(step, REMAT_POLICIES[config.remat])
    if config.scan_layers:
        if hook is not unchanged:
            raise InputError("the inside of a tower with scan_layers=True cannot be seen: set scan_layers=False.")
        return scan_stack(blocks, step, x, keys, jnp.asarray(rates))
    for i, block in enumerate(blocks):
        x = step(block, hook(f"block{i}", x), None if keys is None else keys[i], rates[i])
    return x
