"""Image and text towers whose tokens meet: two projections to contrast, and an encoder that looks at both.

Shapes: B images, R texts, T text tokens, N image tokens, W width of the text, M masked positions, V token ids.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make, remat, scan_stack, stack
from mixcon.models.heads import LogitScale, l2_normalize
from mixcon.models.layers import (
    REMAT_POLICIES,
    BlockConfig,
    CrossAttention,
    LayerNorm,
    Mlp,
    SelfAttention,
    dropout,
    float_dtype,
    gelu,
    normal,
    split_key,
)


class FusionBlock(nnx.Module):
    """`norm1(x + attn(x))`, then `norm2(x + cross(x, image))`, then `norm3(x + mlp(x))`."""

    def __init__(self, config: BlockConfig, context_width: int, rngs: nnx.Rngs):
        c, self.config = config, config
        out_std = c.init_std or (3 * c.depth * c.width) ** -0.5
        self.norm1, self.norm2, self.norm3 = (
            LayerNorm(c.width, eps=c.norm_eps, dtype=c.dtype, rngs=rngs) for _ in range(3)
        )
        part: dict[str, Any] = {"dtype": c.dtype, "in_std": c.init_std, "out_std": out_std, "rngs": rngs}
        self.attn = SelfAttention(c.width, c.heads, qkv_bias=c.qkv_bias, **part)
        self.cross = CrossAttention(
            c.width, c.heads, out_features=c.width, context_width=context_width, dtype=c.dtype, rngs=rngs
        )
        self.mlp = Mlp(c.width, c.mlp_dim, activation=c.activation, **part)

    def __call__(self, x: Array, mask: Array, image: Array, *, train: bool, key: Array | None) -> Array:
        """x [R,T,W], mask bool [R,T], image [R,N,context_width]."""
        keys = split_key(key, 3)

        def branch(y: Array, key: Array | None) -> Array:
            return dropout(y, self.config.dropout, key=key, train=train)

        x = self.norm1(x + branch(self.attn(x, mask), keys[0]))
        x = self.norm2(x + branch(self.cross(x, image), keys[1]))
        return self.norm3(x + branch(self.mlp(x), keys[2]))


class FusionEncoder(nnx.Module):
    """Towers, projections, fusion, a matching head and a head of masked tokens; make it with `fusion_encoder`."""

    def __init__(
        self,
        image: Make,
        text: Make,
        rngs: nnx.Rngs,
        *,
        embed_dim: int,
        depth: int,
        heads: int | None,
        dropout: float,
        temperature: float,
        dtype: np.dtype,
        remat: bool | str,
        scan_layers: bool,
    ):
        self.image, self.text = image(rngs), text(rngs)
        towers: Any = self.image, self.text
        if getattr(getattr(towers[0], "config", None), "pool", "cls") != "cls" or getattr(towers[1], "causal", False):
            raise InputError(
                "a fusion encoder needs an image tower with pool='cls' and a text tower that is not causal."
            )
        widths = [tower.out_features for tower in towers]
        self.blocks_config = BlockConfig(
            width=widths[1],
            depth=depth,
            heads=heads or towers[1].block_config.heads,
            mlp_dim=4 * widths[1],
            norm_eps=1e-12,
            dropout=dropout,
            dtype=dtype,
            remat=remat,
            scan_layers=scan_layers,
            post_norm=True,
            init_std=0.02,
        )
        width, linear = widths[1], functools.partial(nnx.Linear, dtype=dtype, rngs=rngs)
        self.image_projection, self.text_projection = (
            linear(fan_in, embed_dim, kernel_init=normal(fan_in**-0.5)) for fan_in in widths
        )
        self.logit_scale = LogitScale(1 / temperature, parametrization="temperature")
        block = functools.partial(FusionBlock, self.blocks_config, widths[0])
        self.fusion = stack(block, depth, rngs) if scan_layers else nnx.List([block(rngs) for _ in range(depth)])
        small = normal(0.02)
        norm = functools.partial(LayerNorm, eps=1e-12, dtype=dtype, rngs=rngs)
        self.match_fc1, self.match_norm = linear(width, 2 * width, kernel_init=small), norm(2 * width)
        self.match_fc2 = linear(2 * width, 2, kernel_init=small)
        self.word_fc, self.word_norm = linear(width, width, kernel_init=small), norm(width)
        table: Any = towers[1].token_embed
        self.word_bias = nnx.Param(jnp.zeros(table.shape[0], jnp.float32))

    def __call__(self, images: Array, ids: Array, *, train: bool = False, key: Array | None = None) -> dict[str, Array]:
        """Images [B,H,W,C] and ids [R,T] -> unit embeddings `image` [B,D], `text` [R,D] and their tokens."""
        keys = split_key(key, 2)
        image, image_tokens = self.encode_image(images, train=train, key=keys[0])
        text, text_tokens = self.encode_text(ids, train=train, key=keys[1])
        return {"image": image, "image_tokens": image_tokens, "text": text, "text_tokens": text_tokens}

    def encode_image(self, images: Array, *, train: bool = False, key: Array | None = None) -> tuple[Array, Array]:
        """-> unit embeddings [B,D], float32, and tokens [B,N,width of the image tower]."""
        tower: Any = self.image
        tokens = tower.tokens(images, train=train, key=key)
        return l2_normalize(self.image_projection(tokens[:, 0])), tokens

    def encode_text(self, ids: Array, *, train: bool = False, key: Array | None = None) -> tuple[Array, Array]:
        """-> unit embeddings [R,D], float32, and tokens [R,T,W]."""
        tower: Any = self.text
        tokens = tower.tokens(ids, train=train, key=key)
        return l2_normalize(self.text_projection(tokens[:, 0])), tokens

    def match(
        self, ids: Array, text_tokens: Array, image_tokens: Array, *, train: bool = False, key: Array | None = None
    ) -> Array:
        """Does text r belong to image r? Ids [R,T] and tokens of both -> logits [R,2], the second says yes; float32."""
        first = self._fuse(ids, text_tokens, image_tokens, train=train, key=key)[:, 0]
        hidden = gelu(self.match_norm(self.match_fc1(first)))
        return self.match_fc2(hidden).astype(jnp.float32)

    def fill(
        self,
        ids: Array,
        positions: Array,
        image_tokens: Array,
        *,
        train: bool = False,
        key: Array | None = None,
    ) -> Array:
        """What stood at the positions [R,M] of texts with hidden tokens [R,T]: logits [R,M,V], float32."""
        keys = split_key(key, 2)
        tower: Any = self.text
        tokens = tower.tokens(ids, train=train, key=keys[0])
        fused = self._fuse(ids, tokens, image_tokens, train=train, key=keys[1])
        there = jnp.take_along_axis(fused, positions[:, :, None], axis=1)
        hidden = self.word_norm(gelu(self.word_fc(there)))
        table = tower.token_embed[...].astype(hidden.dtype)
        return jnp.dot(hidden, table.T, preferred_element_type=jnp.float32) + self.word_bias[...][None, None]

    def _fuse(self, ids: Array, text: Array, image: Array, *, train: bool, key: Array | None) -> Array:
        c, tower = self.blocks_config, self.text
        pad_id: Any = getattr(tower, "pad_id", None)
        mask = jnp.ones(ids.shape, bool) if pad_id is None else ids != pad_id

        def step(block: Any, x: Array, layer_key: Array | None) -> Array:
            return block(x, mask, image, train=train, key=layer_key)

        if c.remat:
            step = remat(step, REMAT_POLICIES[c.remat])
        keys = None if key is None else jax.random.split(key, c.depth)
        if c.scan_layers:
            return scan_stack(self.fusion, step, text, keys)
        layers: Any = self.fusion
        for i, block in enumerate(layers):
            text = step(block, text, None if keys is None else keys[i])
        return text


def fusion_encoder(
    image: Make,
    text: Make,
    embed_dim: int,
    *,
    depth: int,
    heads: int | None = None,
    dropout: float = 0.1,
    temperature: float = 0.07,
    dtype: Any = "float32",
    remat: bool | str = False,
    scan_layers: bool = False,
) -> Make:
    """Two towers, and a fusion encoder on top of the text's that attends to the image's tokens; a constructor.

    The first tokens are projected linearly and normalised, to be contrasted (`encode_image`, `encode_text`); the fusion
    encoder's first token goes through `linear, norm, gelu, linear` to say whether the two belong together (`match`);
    its tokens through `linear, gelu, norm` and the text's token table to say what was hidden (`fill`).

    Args:
        image: a `vit` with pool="cls". text: a `bert`, or a `text_transformer` that is not causal; its first token
            stands for the text.
        embed_dim: width of the shared space.
        depth: of the fusion encoder; its width is the text's, its heads too unless given.
        dropout: in the fusion encoder. temperature: initial τ; the parameter is τ itself.
        dtype, remat, scan_layers: as in `vit`.

    Returns:
        A function of `nnx.Rngs` that builds the `FusionEncoder`.

    Raises:
        InputError: towers of another kind, or numbers that do not fit together.

    Example:
        >>> model = functional(fusion_encoder(vit("Ti/8", image_size=64), bert(1000, "tiny", pad_id=0), 128, depth=2))
        >>> out, _ = model.apply(params, extra, images, ids)
        >>> logits, _ = model.apply(params, extra, ids, out["text_tokens"], out["image_tokens"], method="match")

    Reference: Li et al., "Align before Fuse", 2021, section 3; Nie et al., "Improving the Consistency in Cross-Lingual
        Cross-Modal Retrieval with 1-to-K Contrastive Learning", 2024.
    """
    if min(embed_dim, depth) < 1 or not temperature > 0:
        raise InputError(
            f"embed_dim={embed_dim} and depth={depth} must be at least 1, temperature={temperature} above 0."
        )
    return functools.partial(
        FusionEncoder,
        image,
        text,
        embed_dim=embed_dim,
        depth=depth,
        heads=heads,
        dropout=dropout,
        temperature=temperature,
        dtype=float_dtype(dtype),
        remat=remat,
        scan_layers=scan_layers,
    )
