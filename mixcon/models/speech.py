"""A transformer over log-mel frames, as Whisper's encoder. Shapes: B batch, T frames, M mel bands, D width."""

import functools
from typing import Any

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make
from mixcon.models.layers import BlockConfig, LayerNorm, float_dtype, gelu, make_blocks, run_blocks, split_key
from mixcon.models.vit import sized


class SpeechTransformer(nnx.Module):
    """Two convolutions, the second of stride 2, fixed positions, blocks, and a mean; see `speech_transformer`."""

    def __init__(self, blocks: BlockConfig, rngs: nnx.Rngs, *, bands: int, frames: int):
        self.block_config, self.bands, self.frames = blocks, bands, frames
        self.out_features = blocks.width
        conv = functools.partial(nnx.Conv, kernel_size=(3,), padding=((1, 1),), dtype=blocks.dtype, rngs=rngs)
        self.conv1 = conv(bands, blocks.width)
        self.conv2 = conv(blocks.width, blocks.width, strides=(2,))
        self.blocks = make_blocks(blocks, rngs)
        self.norm = LayerNorm(blocks.width, eps=blocks.norm_eps, dtype=blocks.dtype, rngs=rngs)

    def __call__(self, mels: Array, *, train: bool = False, key: Array | None = None) -> Array:
        """Log-mel frames [B,T,M] -> features [B,D]."""
        if mels.ndim != 3 or mels.shape[1] > self.frames or mels.shape[2] != self.bands:
            raise InputError(f"want log-mel frames [batch, up to {self.frames}, {self.bands}], got {mels.shape}.")
        x = gelu(self.conv1(mels.astype(self.block_config.dtype)))
        x = gelu(self.conv2(x))
        x = x + jnp.asarray(sinusoids(x.shape[1], x.shape[2]), x.dtype)[None]
        (block_key,) = split_key(key, 1)
        x = run_blocks(self.blocks, self.block_config, x, train=train, key=block_key)
        return self.norm(x).mean(axis=1)


def sinusoids(length: int, width: int, longest: float = 10_000.0) -> np.ndarray:
    """Positions [T, D]: sines, then cosines, of frequencies from 1 down to 1/longest."""
    frequency = longest ** -(np.arange(width // 2) / max(width // 2 - 1, 1))
    angle = np.arange(length)[:, None] * frequency
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=1).astype(np.float32)


def speech_transformer(
    size: str | None = None,
    *,
    bands: int = 80,
    frames: int = 3000,
    width: int | None = None,
    depth: int | None = None,
    heads: int | None = None,
    mlp_dim: int | None = None,
    dropout: float = 0.0,
    dtype: Any = "float32",
    remat: bool | str = False,
    scan_layers: bool = False,
) -> Make:
    """A speech tower, as a constructor for `functional` and `projected`; what it says of a sound is its frames' mean.

    Args:
        size: named size ("S", "B", ...), or None with `width=` and `depth=` (Whisper: tiny 384 and 4, base 512 and 6,
            small 768 and 12; heads of 64).
        bands: M. frames: longest sound, T; half as many tokens.
        width, depth, heads, mlp_dim, dropout, dtype, remat, scan_layers: as in `vit`. The width is even.

    Raises:
        InputError: numbers that do not fit together.

    Example:
        >>> model = functional(speech_transformer(width=64, depth=2, heads=2, bands=20, frames=32))

    Reference: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", 2022, section 2.2.
    """
    blocks = BlockConfig(
        **sized(size, width, depth, heads, mlp_dim),
        norm_eps=1e-5,
        dropout=dropout,
        dtype=float_dtype(dtype),
        remat=remat,
        scan_layers=scan_layers,
    )
    if bands < 1 or frames < 2 or blocks.width % 2:
        raise InputError(f"want bands ≥ 1, frames ≥ 2 and an even width; got {bands}, {frames}, {blocks.width}.")
    return functools.partial(SpeechTransformer, blocks, bands=bands, frames=frames)
