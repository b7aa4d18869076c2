"""BERT: a post-norm text encoder. Shapes: B batch, T tokens, D width."""

import functools
from typing import Any

import jax.numpy as jnp
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make
from mixcon.models.layers import (
    BlockConfig,
    LayerNorm,
    choose,
    dropout,
    float_dtype,
    make_blocks,
    normal,
    run_blocks,
    split_key,
)

SIZES = {  # name: width, depth; heads of 64 channels, an inner width of four times the width
    "tiny": (128, 2),
    "mini": (256, 4),
    "small": (512, 4),
    "medium": (512, 8),
    "base": (768, 12),
    "large": (1024, 24),
}
POOLS = ("cls", "mean")
INIT_STD = 0.02


class Bert(nnx.Module):
    """BERT encoder; make it with `bert`."""

    def __init__(
        self,
        blocks: BlockConfig,
        rngs: nnx.Rngs,
        *,
        vocab_size: int,
        context_length: int,
        segments: int,
        pool: str,
        pad_id: int | None,
    ):
        self.block_config, self.pool_kind = blocks, pool
        self.context_length, self.pad_id = context_length, pad_id
        self.out_features = blocks.width
        table = normal(INIT_STD)
        self.token_embed = nnx.Param(table(rngs.params(), (vocab_size, blocks.width)))
        self.pos_embed = nnx.Param(table(rngs.params(), (context_length, blocks.width)))
        self.segment_embed = nnx.Param(table(rngs.params(), (segments, blocks.width)))
        self.norm = LayerNorm(blocks.width, eps=blocks.norm_eps, dtype=blocks.dtype, rngs=rngs)
        self.blocks = make_blocks(blocks, rngs)

    def __call__(
        self, ids: Array, mask: Array | None = None, *, train: bool = False, key: Array | None = None
    ) -> Array:
        """Token ids [B,T] (and mask bool [B,T], True for real tokens) -> pooled features [B,D]."""
        mask = self._mask(ids, mask)
        x = self._encode(ids, mask, train=train, key=key)
        if self.pool_kind == "cls":
            return x[:, 0]
        if mask is None:
            return x.mean(axis=1)
        weight = mask.astype(x.dtype)[:, :, None]
        return (x * weight).sum(axis=1) / jnp.maximum(weight.sum(axis=1), jnp.ones((), x.dtype))

    def tokens(self, ids: Array, mask: Array | None = None, *, train: bool = False, key: Array | None = None) -> Array:
        """Token ids [B,T] -> last hidden states [B,T,D]."""
        return self._encode(ids, self._mask(ids, mask), train=train, key=key)

    def _mask(self, ids: Array, mask: Array | None) -> Array | None:
        return ids != self.pad_id if mask is None and self.pad_id is not None else mask

    def _encode(self, ids: Array, mask: Array | None, *, train: bool, key: Array | None) -> Array:
        if ids.ndim != 2 or not jnp.issubdtype(ids.dtype, jnp.integer):
            raise InputError(f"token ids must be integers of shape [batch, tokens], got {ids.dtype} {ids.shape}.")
        if ids.shape[1] > self.context_length:
            raise InputError(
                f"{ids.shape[1]} tokens exceed context_length={self.context_length}; truncate them in the tokeniser."
            )
        c = self.block_config
        embed_key, block_key = split_key(key, 2)
        # One text is one segment, the first; the table of segments is kept whole because checkpoints have it.
        here = self.pos_embed[...][None, : ids.shape[1]] + self.segment_embed[...][:1][None]
        x = self.norm(self.token_embed[...][ids] + here)
        x = dropout(x, c.dropout, key=embed_key, train=train)
        return run_blocks(self.blocks, c, x, mask, train=train, key=block_key)


def bert(
    vocab_size: int,
    size: str | None = "base",
    *,
    context_length: int = 512,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    mlp_dim: int | None = None,
    segments: int = 2,
    pool: str = "cls",
    pad_id: int | None = None,
    activation: str = "gelu",
    norm_eps: float = 1e-12,
    dropout: float = 0.1,
    dtype: Any = "float32",
    remat: bool | str = False,
    scan_layers: bool = False,
) -> Make:
    """A BERT encoder, as a constructor for `functional` or `dual_encoder`.

    `x_0 = norm(token + position + segment)`; in each block `x ← norm(x + attn(x))`, `x ← norm(x + mlp(x))`. Dropout is
    on the embeddings and both branches; the weights of the attention, which the paper drops as well, are kept.

    Args:
        vocab_size: number of token ids.
        size: "tiny", "mini", "small", "medium", "base" or "large", or None with `width=` and `depth=`.
        context_length: longest text in tokens; shorter batches are accepted.
        width, depth, heads, mlp_dim: instead of the named size's; heads default to width / 64, mlp_dim to 4 * width.
        segments: rows of the segment table; texts are in the first.
        pool: "cls" (last hidden state of the first token; no tanh layer follows) or "mean" (over unmasked tokens).
        pad_id: id of the padding token; it is masked out. An explicit `mask` argument of the call takes precedence.
        activation, norm_eps, dropout, dtype, remat, scan_layers: as in `text_transformer`.

    Returns:
        A function of `nnx.Rngs` that builds the `Bert`.

    Raises:
        InputError: an unknown name, or numbers that do not fit together.

    Example:
        >>> model = functional(bert(1000, "tiny", context_length=16, pad_id=0))

    Reference: Devlin et al., "BERT: Pre-training of Deep Bidirectional Transformers for Language Understanding", 2019,
        section 3; sizes below base: Turc et al., "Well-Read Students Learn Better", 2019, table 1.
    """
    choose(pool, POOLS, "pool")
    if size is not None:
        named = SIZES[choose(size, SIZES, "size")]
        width, depth = width or named[0], depth or named[1]
    if width is None or depth is None:
        raise InputError(f"Give size= (one of {', '.join(SIZES)}), or width= and depth=.")
    if min(vocab_size, context_length, segments) < 1:
        raise InputError("vocab_size, context_length and segments must be at least 1.")
    if pad_id is not None and not 0 <= pad_id < vocab_size:
        raise InputError(f"pad_id={pad_id} must be in [0, vocab_size={vocab_size}).")
    blocks = BlockConfig(
        width=width,
        depth=depth,
        heads=heads or max(1, width // 64),
        mlp_dim=mlp_dim or 4 * width,
        activation=activation,
        norm_eps=norm_eps,
        dropout=dropout,
        dtype=float_dtype(dtype),
        remat=remat,
        scan_layers=scan_layers,
        post_norm=True,
        init_std=INIT_STD,
    )
    return functools.partial(
        Bert,
        blocks,
        vocab_size=vocab_size,
        context_length=context_length,
        segments=segments,
        pool=pool,
        pad_id=pad_id,
    )
