"""Vision transformer. Shapes: B batch, N patches, T tokens (N, or N+1 with a class token), D width."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make
from mixcon.models.layers import (
    BlockConfig,
    CrossAttention,
    Hook,
    LayerNorm,
    Mlp,
    choose,
    float_dtype,
    make_blocks,
    normal,
    require_key,
    run_blocks,
    split_key,
    unchanged,
)

SIZES = {  # name: width, depth, mlp_dim, heads
    "Ti": (192, 12, 768, 3),
    "S": (384, 12, 1536, 6),
    "B": (768, 12, 3072, 12),
    "L": (1024, 24, 4096, 16),
    "H": (1280, 32, 5120, 16),
    "g": (1408, 40, 6144, 16),
    "G": (1664, 48, 8192, 16),
}


def sized(
    size: str | None, width: int | None, depth: int | None, heads: int | None, mlp_dim: int | None
) -> dict[str, Any]:
    """Width, depth, heads and mlp_dim of a named size, with explicit numbers taking precedence."""
    if size is not None:
        named = dict(zip(("width", "depth", "mlp_dim", "heads"), SIZES[choose(size, SIZES, "size")], strict=True))
        if width is not None and width != named["width"]:  # the name's other proportions no longer fit
            named |= {"width": width, "heads": max(1, width // 64), "mlp_dim": 4 * width}
    elif width is None or depth is None:
        raise InputError("Give size= (one of " + ", ".join(SIZES) + "), or width= and depth=.")
    else:
        named = {"width": width, "depth": depth, "heads": max(1, width // 64), "mlp_dim": 4 * width}
    given = {"depth": depth, "heads": heads, "mlp_dim": mlp_dim}
    return named | {name: value for name, value in given.items() if value is not None}


def sincos_2d(grid: tuple[int, int], width: int, temperature: float = 10_000.0) -> np.ndarray:
    """Fixed two-dimensional sine-cosine positions.

    For a patch at (row y, column x) and frequencies `w_j = temperature^(-j / (width/4 - 1))`, `j < width/4`:
    `[sin(x w), cos(x w), sin(y w), cos(y w)]`.

    Args:
        grid: patches as (rows, columns).
        width: embedding width, a multiple of 4.
        temperature: ratio of the longest to the shortest wave length.

    Returns:
        float32 [rows * columns, width], row-major.

    Reference: Beyer, Zhai, Kolesnikov, "Better plain ViT baselines for ImageNet-1k", 2022.
    """
    if width % 4 or width < 8:
        raise InputError(f"width={width} must be a multiple of 4 and at least 8 for sin-cos positions.")
    y, x = (axis.reshape(-1, 1) for axis in np.meshgrid(*map(np.arange, grid), indexing="ij"))
    frequency = temperature ** (-np.arange(width // 4) / (width // 4 - 1))
    return np.concatenate(
        [np.sin(x * frequency), np.cos(x * frequency), np.sin(y * frequency), np.cos(y * frequency)], axis=1
    ).astype(np.float32)


class AttentionPool(nnx.Module):
    """Multi-head attention pooling (MAP): a learned probe attends over the tokens, then a residual MLP."""

    def __init__(self, config: BlockConfig, rngs: nnx.Rngs):
        c = config
        self.probe = nnx.Param(normal(c.width**-0.5)(rngs.params(), (1, 1, c.width)))
        self.attn = CrossAttention(c.width, c.heads, out_features=c.width, dtype=c.dtype, rngs=rngs)
        self.norm = LayerNorm(c.width, eps=c.norm_eps, dtype=c.dtype, rngs=rngs)
        self.mlp = Mlp(
            c.width, c.mlp_dim, activation=c.activation, dtype=c.dtype, out_std=(2 * c.width) ** -0.5, rngs=rngs
        )

    def __call__(self, tokens: Array) -> Array:
        """[B,T,D] -> [B,D]."""
        probe = jnp.broadcast_to(self.probe[...].astype(tokens.dtype), (tokens.shape[0], 1, tokens.shape[2]))
        x = self.attn(probe, tokens)
        return (x + self.mlp(self.norm(x)))[:, 0]


def keep_patches(x: Array, keep: int, *, key: Array) -> Array:
    """A uniformly random subset of `keep` patches of each example, without replacement, in random order.

    x [B,N,D] -> [B,keep,D].
    """
    order = jnp.argsort(jax.random.uniform(key, x.shape[:2]), axis=1)[:, :keep]
    return jnp.take_along_axis(x, order[:, :, None], axis=1)


@dataclasses.dataclass(frozen=True)
class ViTConfig:
    """Everything about a `ViT` that is not in its blocks."""

    image_size: tuple[int, int]
    patch: int
    channels: int
    pool: str
    positions: str
    patch_dropout: float
    patch_bias: bool
    pre_norm: bool
    num_classes: int

    def __post_init__(self) -> None:
        choose(self.pool, ("cls", "mean", "map"), "pool")
        choose(self.positions, ("learned", "sincos2d"), "positions")
        if self.patch < 1 or any(side < 1 or side % self.patch for side in self.image_size):
            raise InputError(f"image_size={self.image_size} must be a positive multiple of patch={self.patch}.")
        if not 0.0 <= self.patch_dropout < 1.0:
            raise InputError(f"patch_dropout={self.patch_dropout} must be in [0, 1).")

    @property
    def grid(self) -> tuple[int, int]:
        return self.image_size[0] // self.patch, self.image_size[1] // self.patch


class ViT(nnx.Module):
    """Vision transformer; make it with `vit`."""

    def __init__(self, config: ViTConfig, blocks: BlockConfig, rngs: nnx.Rngs):
        c, width, dtype = config, blocks.width, blocks.dtype
        self.config, self.block_config = config, blocks
        self.out_features = c.num_classes or width
        fan_in = c.patch * c.patch * c.channels
        # A convolution with kernel = stride = patch is this matrix product on reshaped patches, and far faster on CPU.
        self.patch_embed = nnx.Linear(
            fan_in, width, use_bias=c.patch_bias, kernel_init=normal(fan_in**-0.5), dtype=dtype, rngs=rngs
        )
        tokens = c.grid[0] * c.grid[1] + (c.pool == "cls")
        if c.pool == "cls":
            self.cls_token = nnx.Param(normal(width**-0.5)(rngs.params(), (width,)))
        if c.positions == "learned":
            self.pos_embed = nnx.Param(normal(width**-0.5)(rngs.params(), (tokens, width)))
        norm = functools.partial(LayerNorm, width, eps=blocks.norm_eps, dtype=dtype, rngs=rngs)
        if c.pre_norm:
            self.norm_pre = norm()
        self.blocks = make_blocks(blocks, rngs)
        self.norm = norm()
        if c.pool == "map":
            self.pool = AttentionPool(blocks, rngs)
        if c.num_classes:
            self.head = nnx.Linear(width, c.num_classes, kernel_init=nnx.initializers.zeros, dtype=dtype, rngs=rngs)

    def __call__(
        self, images: Array, *, train: bool = False, key: Array | None = None, hook: Hook = unchanged
    ) -> Array:
        """Normalised images [B,H,W,C] -> pooled features [B,D], or logits [B,num_classes].

        `hook("block0", x)` sees (and may replace) the tokens [B,T,D] that enter each block.
        """
        x = self._encode(images, train=train, key=key, hook=hook)
        if self.config.pool == "cls":
            pooled = self.norm(x[:, 0])
        elif self.config.pool == "mean":
            pooled = self.norm(x).mean(axis=1)
        else:
            pooled = self.pool(self.norm(x))
        return self.head(pooled) if self.config.num_classes else pooled

    def tokens(self, images: Array, *, train: bool = False, key: Array | None = None) -> Array:
        """Normalised images [B,H,W,C] -> final token features [B,T,D] (the class token, if any, first)."""
        return self.norm(self._encode(images, train=train, key=key))

    def with_attention(
        self, images: Array, *, train: bool = False, key: Array | None = None, hook: Hook = unchanged
    ) -> tuple[Array, Array]:
        """As calling it, and every block's attention, float32 [depth, B, heads, T, T] (the class token first)."""
        blocks: Any = self.blocks
        maps = []

        def look(place: str, x: Array) -> Array:
            x = hook(place, x)
            block = blocks[int(place.removeprefix("block"))]
            maps.append(block.attn.weights(block.norm1(x)))
            return x

        out = self(images, train=train, key=key, hook=look)
        return out, jnp.stack(maps)

    def _encode(self, images: Array, *, train: bool, key: Array | None, hook: Hook = unchanged) -> Array:
        c, dtype = self.config, self.block_config.dtype
        if images.shape[1:] != (*c.image_size, c.channels):
            raise InputError(
                f"images must be [batch, *{c.image_size}, {c.channels}], got {images.shape}: its image_size and "
                "the size of the data (data.train.size, or that of a crop) must agree."
            )
        if not jnp.issubdtype(images.dtype, jnp.floating):
            raise InputError(f"images must be normalised floats, got {images.dtype}; augment or normalise them first.")
        drop_key, block_key = split_key(key, 2)

        batch, (rows, cols), p = images.shape[0], c.grid, c.patch
        patches = images.reshape(batch, rows, p, cols, p, c.channels).swapaxes(2, 3)
        x = self.patch_embed(patches.reshape(batch, rows * cols, -1))
        positions = self._positions()
        x = x + positions[None, -rows * cols :].astype(dtype)
        if train and c.patch_dropout:
            keep = max(1, round(rows * cols * (1.0 - c.patch_dropout)))
            x = keep_patches(x, keep, key=require_key(drop_key, "patch_dropout"))
        if c.pool == "cls":
            cls = self.cls_token[...]
            cls = cls + positions[0] if c.positions == "learned" else cls
            x = jnp.concatenate([jnp.broadcast_to(cls.astype(dtype), (batch, 1, cls.size)), x], axis=1)
        if c.pre_norm:
            x = self.norm_pre(x)
        return run_blocks(self.blocks, self.block_config, x, train=train, key=block_key, hook=hook)

    def _positions(self) -> Array:
        if self.config.positions == "learned":
            return self.pos_embed[...]
        return jnp.asarray(sincos_2d(self.config.grid, self.block_config.width))


def vit(
    size: str | None = None,
    *,
    image_size: int | tuple[int, int] = 224,
    patch: int | None = None,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    mlp_dim: int | None = None,
    channels: int = 3,
    pool: str = "cls",
    positions: str = "learned",
    patch_dropout: float = 0.0,
    patch_bias: bool = True,
    pre_norm: bool = False,
    activation: str = "gelu",
    qkv_bias: bool = True,
    norm_eps: float = 1e-6,
    dropout: float = 0.0,
    stochastic_depth: float = 0.0,
    num_classes: int = 0,
    dtype: Any = "float32",
    remat: bool | str = False,
    scan_layers: bool = False,
) -> Make:
    """A vision transformer, as a constructor for `functional` or `dual_encoder`.

    Args:
        size: "B/16" (named size and patch), "B" with `patch=`, or None with `width=` and `depth=`. Numbers win.
        image_size: side, or (height, width), in pixels; a multiple of the patch.
        patch: patch side in pixels.
        width, depth, heads, mlp_dim: custom size; heads default to width // 64, mlp_dim to 4 * width.
        channels: of the image.
        pool: "cls" (class token), "mean", or "map" (attention pooling).
        positions: "learned" or "sincos2d".
        patch_dropout: share of patches left out when training; the number kept is static.
        patch_bias: bias in the patch embedding (CLIP has none).
        pre_norm: layer norm before the blocks, as in CLIP.
        activation: "gelu" (exact), "gelu_tanh", "quick_gelu", "relu".
        qkv_bias: bias in the attention's input projection.
        norm_eps: of all layer norms.
        dropout, stochastic_depth: rates in [0, 1), active when training.
        num_classes: adds a zero-initialised linear classifier when positive.
        dtype: compute dtype; parameters stay float32.
        remat: recompute each block in the backward pass: False, True, or "dots" (keeps matrix products).
        scan_layers: compile one block and scan over depth (deep towers compile faster; parameters are stacked).

    Returns:
        A function of `nnx.Rngs` that builds the `ViT`.

    Raises:
        InputError: an unknown name, or numbers that do not fit together.

    Example:
        >>> model = functional(vit("Ti/8", image_size=64, pool="mean"))

    Reference: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021, section 3.1; attention pooling:
        Zhai et al., "Scaling Vision Transformers", 2022, section 2.1.
    """
    if size is not None and "/" in size:
        size, _, named_patch = size.partition("/")
        if not named_patch.isdigit():
            raise InputError(f"size='{size}/{named_patch}' is not of the form 'B/16'.")
        patch = int(named_patch) if patch is None else patch
    if patch is None:
        raise InputError("Give the patch side: size='B/16', or patch=16.")
    height, width_px = (image_size, image_size) if isinstance(image_size, int) else image_size
    config = ViTConfig(
        image_size=(height, width_px),
        patch=patch,
        channels=channels,
        pool=pool,
        positions=positions,
        patch_dropout=patch_dropout,
        patch_bias=patch_bias,
        pre_norm=pre_norm,
        num_classes=num_classes,
    )
    blocks = BlockConfig(
        **sized(size, width, depth, heads, mlp_dim),
        activation=activation,
        qkv_bias=qkv_bias,
        norm_eps=norm_eps,
        dropout=dropout,
        stochastic_depth=stochastic_depth,
        dtype=float_dtype(dtype),
        remat=remat,
        scan_layers=scan_layers,
    )
    if positions == "sincos2d":
        sincos_2d((1, 1), blocks.width)  # refuses a width that does not divide
    return functools.partial(ViT, config, blocks)
