"""Text transformer. Shapes: B batch, T tokens, D width."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make
from mixcon.models.layers import BlockConfig, LayerNorm, choose, float_dtype, make_blocks, normal, run_blocks, split_key
from mixcon.models.vit import sized

POOLS = ("eos", "argmax", "mean", "cls", "last")


class TextTransformer(nnx.Module):
    """Text transformer; make it with `text_transformer`."""

    def __init__(
        self,
        blocks: BlockConfig,
        rngs: nnx.Rngs,
        *,
        vocab_size: int,
        context_length: int,
        causal: bool,
        pool: str,
        eos_id: int | None,
        pad_id: int | None,
    ):
        self.block_config, self.causal, self.pool_kind = blocks, causal, pool
        self.context_length, self.eos_id, self.pad_id = context_length, eos_id, pad_id
        self.out_features = blocks.width
        self.token_embed = nnx.Param(normal(0.02)(rngs.params(), (vocab_size, blocks.width)))
        self.pos_embed = nnx.Param(normal(0.01)(rngs.params(), (context_length, blocks.width)))
        self.blocks = make_blocks(blocks, rngs)
        self.norm = LayerNorm(blocks.width, eps=blocks.norm_eps, dtype=blocks.dtype, rngs=rngs)

    def __call__(
        self, ids: Array, mask: Array | None = None, *, train: bool = False, key: Array | None = None
    ) -> Array:
        """Token ids [B,T] (and mask bool [B,T], True for real tokens) -> pooled features [B,D]."""
        mask = self._mask(ids, mask)
        x = self._encode(ids, mask, train=train, key=key)
        if self.pool_kind == "mean":
            x = self.norm(x)
            if mask is None:
                return x.mean(axis=1)
            weight = mask.astype(x.dtype)[:, :, None]
            return (x * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), jnp.ones((), x.dtype))
        position_B = self._position(ids, mask)
        return self.norm(jnp.take_along_axis(x, position_B[:, None, None], axis=1)[:, 0])

    def tokens(self, ids: Array, mask: Array | None = None, *, train: bool = False, key: Array | None = None) -> Array:
        """Token ids [B,T] -> final token features [B,T,D]."""
        return self.norm(self._encode(ids, self._mask(ids, mask), train=train, key=key))

    def _mask(self, ids: Array, mask: Array | None) -> Array | None:
        return ids != self.pad_id if mask is None and self.pad_id is not None else mask

    def _position(self, ids: Array, mask: Array | None) -> Array:
        """The token [B] whose feature stands for the text."""
        if self.pool_kind == "cls":
            return jnp.zeros(ids.shape[0], jnp.int32)
        if self.pool_kind == "argmax":
            return jnp.argmax(ids, axis=1)
        steps = jnp.arange(ids.shape[1])[None, :]
        last = jnp.full(ids.shape[0], ids.shape[1] - 1) if mask is None else jnp.where(mask, steps, 0).max(axis=1)
        if self.pool_kind == "last":
            return last
        is_eos = jnp.equal(ids, jnp.asarray(self.eos_id, ids.dtype))
        # A text cut before its end token has none: its last token is then the one that has seen everything.
        return jnp.where(is_eos.any(axis=1), jnp.argmax(is_eos, axis=1), last)

    def _encode(self, ids: Array, mask: Array | None, *, train: bool, key: Array | None) -> Array:
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise InputError(f"token ids must be integers of shape [batch, tokens], got {ids.dtype} {ids.shape}.")
        if ids.shape[1] > self.context_length:
            raise InputError(
                f"{ids.shape[1]} tokens exceed context_length={self.context_length}; truncate them in the tokeniser."
            )
        dtype = self.block_config.dtype
        x = self.token_embed[...].astype(dtype)[ids] + self.pos_embed[...].astype(dtype)[None, : ids.shape[1]]
        (block_key,) = split_key(key, 1)
        return run_blocks(self.blocks, self.block_config, x, mask, causal=self.causal, train=train, key=block_key)


def text_transformer(
    vocab_size: int,
    size: str | None = None,
    *,
    context_length: int = 77,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    mlp_dim: int | None = None,
    causal: bool = True,
    pool: str = "eos",
    eos_id: int | None = None,
    pad_id: int | None = None,
    activation: str = "gelu",
    qkv_bias: bool = True,
    norm_eps: float = 1e-6,
    dropout: float = 0.0,
    residual_dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    dtype: Any = "float32",
    remat: bool | str = False,
    scan_layers: bool = False,
) -> Make:
    """A text transformer, as a constructor for `functional` or `dual_encoder`.

    Args:
        vocab_size: number of token ids.
        size: named size ("S", "B", ...), or None with `width=` and `depth=` (CLIP: width=512, depth=12).
        context_length: longest text in tokens; shorter batches are accepted.
        width, depth, heads, mlp_dim: custom size; heads default to width // 64, mlp_dim to 4 * width.
        causal: tokens see only earlier ones.
        pool: "eos" (first position of `eos_id`; the last token where there is none), "argmax" (position of the
            largest id, CLIP's original rule), "mean" (over unmasked tokens), "cls" (first token), "last" (last
            unmasked token).
        eos_id: id of the end token; needed for pool="eos".
        pad_id: id of the padding token; it is masked out of attention and pooling. None masks nothing, which is right
            for causal towers that pool at the end token. An explicit `mask` argument of the call takes precedence.
        residual_dropout: on what enters each block, the residual stream itself; `dropout` is on the branches.
        activation, qkv_bias, norm_eps, dropout, stochastic_depth, dtype, remat, scan_layers: as in `vit`.

    Returns:
        A function of `nnx.Rngs` that builds the `TextTransformer`.

    Raises:
        InputError: an unknown name, or numbers that do not fit together.

    Example:
        >>> model = functional(text_transformer(1000, width=128, depth=2, context_length=16, eos_id=2))

    Reference: Radford et al., "Learning Transferable Visual Models From Natural Language Supervision",
        2021, section 2.4.
    """
    choose(pool, POOLS, "pool")
    if pool == "eos" and eos_id is None:
        raise InputError("pool='eos' needs eos_id= (the tokeniser's end token); or choose 'argmax', 'mean' or 'last'.")
    if pool == "cls" and causal:
        raise InputError("pool='cls' with causal=True would see only the first token; use causal=False or pool='eos'.")
    for name, value in (("eos_id", eos_id), ("pad_id", pad_id)):
        if value is not None and not 0 <= value < vocab_size:
            raise InputError(f"{name}={value} must be in [0, vocab_size={vocab_size}).")
    if context_length < 1:
        raise InputError(f"context_length={context_length} must be at least 1.")
    blocks = BlockConfig(
        **sized(size, width, depth, heads, mlp_dim),
        activation=activation,
        qkv_bias=qkv_bias,
        norm_eps=norm_eps,
        dropout=dropout,
        residual_dropout=residual_dropout,
        stochastic_depth=stochastic_depth,
        dtype=float_dtype(dtype),
        remat=remat,
        scan_layers=scan_layers,
    )
    return functools.partial(
        TextTransformer,
        blocks,
        vocab_size=vocab_size,
        context_length=context_length,
        causal=causal,
        pool=pool,
        eos_id=eos_id,
        pad_id=pad_id,
    )
