"""Image-text matching: which captions and which hard negatives a fusion encoder is shown.

Shapes: B images, K captions of each, D features.
"""

from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.typing import ArrayLike

from mixcon import ops
from mixcon.errors import InputError
from mixcon.objectives.batch import accumulator, global_size, inverse_temperature, l2_normalize
from mixcon.objectives.one_to_k import CaptionStatistics, caption_mask, caption_rows, caption_statistics
from mixcon.ops import Block, Impl

Preference = Literal["uniform", "probability", "similarity"]
FLOOR = 1e-5  # added to every probability: each other caption or image can be drawn


class Drawn(NamedTuple):
    """For each image what it is shown with; -1 where there is none."""

    caption: Array  # [B] which of its own K captions
    negative_image: Array  # [B] row of an image for that caption
    negative_text: Array  # [B] row of a caption (bK + l) for that image


def draw_matches(
    image: Array,
    text: Array,
    *,
    key: Array,
    temperature: ArrayLike,
    prefer: Preference = "probability",
    text_mask: ArrayLike | None = None,
    ids: ArrayLike | None = None,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Drawn:
    """A caption of each image, a hard negative image for it, and a hard negative caption, in linear memory.

    Caption l of image b by `positive_language_weights`; image j for it with weight `softmax_j(S_j,bK+l) + 1e-5`,
    caption j for the image with `softmax_j(S_bj) + 1e-5`, none of the image itself. Each is the arg-max of log weight +
    Gumbel noise over the tiles; the noise is a function of the key and the pair, so that the draw is the same on
    any mesh. The published code draws on each device from its own examples; see `draw_matches_in_blocks`.

    Args:
      image: [B, D] unit rows. text: [BK, D] or [B, K, D] unit rows, in the order of `one_to_k`.
      key: of the draw. temperature: τ > 0 of `S = v tᵀ/τ`.
      prefer: which captions, see `positive_language_weights`.
      text_mask: [B, K] bool, False for captions that are missing; they are never drawn.
      ids: [B] integers, equal for the same image: it is no negative of itself. None: every image is another.
      normalize: divide rows by their norm first. impl, axis_name: see `mixcon.ops.pair_reduce`; under `axis_name` the
        rows are those of the whole batch.

    Returns:
      `Drawn`, without gradient.

    Raises:
      InputError: one image alone (there is no negative), shapes that do not fit, τ not above zero.

    Example:
      >>> drawn = draw_matches(image, text, key=key, temperature=0.07)
      >>> others = image_tokens[drawn.negative_image]

    Reference: Nie et al., "Improving the Consistency in Cross-Lingual Cross-Modal Retrieval with 1-to-K Contrastive
      Learning", 2024 (multilingual image-text matching); Li et al., "Align before Fuse", 2021, section 3.2.
    """
    image, text = lax.stop_gradient((image, text))
    rows, captions = caption_rows(text, image)
    image, rows = (l2_normalize(image), l2_normalize(rows)) if normalize else (image, rows)
    batch, total = len(image), global_size(len(image), axis_name)
    if total < 2:
        raise InputError("matching needs at least two images in a batch: one alone has no negative.")
    there = caption_mask(text_mask, batch, captions)
    scale = lax.stop_gradient(inverse_temperature(temperature))
    stats = lax.stop_gradient(caption_statistics(image, rows, scale, there, top=True, impl=impl, axis_name=axis_name))
    there = jnp.ones((batch, captions), bool) if there is None else there
    caption_key, image_key, text_key = jax.random.split(key, 3)

    chances = _language_weights(stats, prefer, axis_name)
    noise = _gumbel(_words(caption_key, 0, total * captions, axis_name).reshape(batch, captions))
    score = jnp.where(there, jnp.log(chances) + noise.astype(chances.dtype), -jnp.inf)
    caption = jnp.where(there.any(1), jnp.argmax(score, axis=1), -1).astype(jnp.int32)
    chosen = jnp.maximum(caption, 0)[:, None]

    if ids is None:
        known = jnp.arange(batch, dtype=jnp.int32)
        known = known if axis_name is None else known + batch * lax.axis_index(axis_name)
    else:
        known = _image_ids(ids, batch)
    of_captions = jnp.repeat(known, captions)

    def other(queries: Array, keys: Array, denominator: Array, key: Array, key_ids: Array, kept: Array) -> Array:
        found = ops.best_keys(
            _perturbed,
            queries,
            keys,
            1,
            rows=(denominator, known, _words(key, 0, total, axis_name)),
            cols=(key_ids, kept, _words(key, 1, len(keys) * (total // batch), axis_name)),
            shared=jnp.asarray(scale, accumulator(queries)),
            impl=impl,
            axis_name=axis_name,
        )
        return jnp.where(caption >= 0, found.indices[:, 0], -1)

    of_caption = jnp.take_along_axis(rows.reshape(batch, captions, -1), chosen[:, :, None], axis=1)[:, 0]
    denominator = jnp.take_along_axis(stats.text_denominator, chosen, axis=1)[:, 0]
    everyone = jnp.ones(batch, bool)
    return Drawn(
        caption,
        other(of_caption, image, denominator, image_key, known, everyone),
        other(image, rows, stats.image_denominator, text_key, of_captions, there.reshape(-1)),
    )


def draw_matches_in_blocks(image: Array, text: Array, *, block: int, key: Array, **options: Any) -> Drawn:
    """`draw_matches` within consecutive blocks of the batch, as if each were one device's: rows are those of the batch.

    Args:
      image, text, options: of `draw_matches`, but for axis_name. block: examples of a block, a divisor of B.

    Raises:
      InputError: a block that does not divide the batch, and as for `draw_matches`.
    """
    rows, captions = caption_rows(text, image)
    batch = len(image)
    if block < 2 or batch % block:
        raise InputError(f"block={block} must be at least 2 and divide the batch of {batch} images.")
    blocks = batch // block
    arrays = {name: options.pop(name) for name in ("text_mask", "ids") if options.get(name) is not None}

    def cut(x: ArrayLike) -> Array:
        whole = jnp.asarray(x)
        return whole.reshape(blocks, block, *whole.shape[1:])

    def draw(key: Array, image: Array, text: Array, arrays: dict[str, Any]) -> Drawn:
        return draw_matches(image, text, key=key, impl="dense", **arrays, **options)

    texts = rows.reshape(batch, captions, -1)
    options.pop("impl", None)
    found = jax.vmap(draw)(jax.random.split(key, blocks), cut(image), cut(texts), jax.tree.map(cut, arrays))
    first = jnp.arange(blocks, dtype=jnp.int32)[:, None] * block
    at = {"negative_image": first, "negative_text": first * captions}
    moved = {name: jnp.where(rows >= 0, rows + at.get(name, 0), -1) for name, rows in found._asdict().items()}
    return Drawn(**{name: rows.reshape(batch) for name, rows in moved.items()})


def positive_language_weights(logits: Array, captions: int, prefer: Preference = "probability") -> Array:
    """How likely each of an image's own captions is drawn: the less similar ones more, for alignment that is even.

    With `W = softmax_row(S) + 1e-5`: weight of caption l is 1 ("uniform", 0 in the published code),
    `max W + 1e-5 - W_b,bK+l` ("probability", 1, its default) or `max S + 1e-5 - S_b,bK+l` ("similarity", 2).

    Args:
      logits: S [B, BK]. captions: K.

    Returns:
      [B, K], rows sum to one. The dense twin of what `draw_matches` draws by.

    Raises:
      InputError: logits of another shape, an unknown preference.

    Example:
      >>> positive_language_weights(image @ text.T / 0.07, captions=3)

    Reference: Nie et al., 2024, official code.
    """
    batch = _batch_of(logits, captions)
    own = jnp.take_along_axis(logits.reshape(batch, batch, captions), _diagonal(batch), axis=1)[:, 0]
    nothing = jnp.zeros_like(own)
    stats = CaptionStatistics(own, jax.nn.logsumexp(logits, axis=1), nothing, logits.max(axis=1))
    return _language_weights(stats, prefer, None)


def hard_negative_weights(logits: Array, captions: int) -> tuple[Array, Array]:
    """How likely each image is drawn for a caption, and each caption for an image; not normalised.

    `softmax_row(Sᵀ) + 1e-5` and `softmax_row(S) + 1e-5`, zero for an image's own captions.

    Args:
      logits: S [B, BK]. captions: K.

    Returns:
      Of images [BK, B], of captions [B, BK]. The dense twin of what `draw_matches` draws by.

    Example:
      >>> of_images, of_captions = hard_negative_weights(image @ text.T / 0.07, captions=3)

    Reference: Nie et al., 2024; Li et al., 2021, section 3.2.
    """
    batch = _batch_of(logits, captions)
    own = jnp.repeat(jnp.eye(batch, dtype=bool), captions, axis=1)
    of_images = jnp.where(own.T, 0, jax.nn.softmax(logits.T, axis=1) + FLOOR)
    return of_images, jnp.where(own, 0, jax.nn.softmax(logits, axis=1) + FLOOR)


def _language_weights(stats: CaptionStatistics, prefer: str, axis_name: str | None) -> Array:
    if prefer not in ("uniform", "probability", "similarity"):
        raise InputError(f"prefer must be 'uniform', 'probability' or 'similarity', got {prefer!r}.")
    if prefer == "uniform":
        return jnp.full(stats.logits.shape, 1 / stats.logits.shape[1], stats.logits.dtype)
    own, top = stats.logits, stats.top
    if prefer == "probability":
        own, top = jnp.exp(own - stats.image_denominator[:, None]), jnp.exp(top - stats.image_denominator)
    top = top.max() if axis_name is None else lax.pmax(top.max(), axis_name)
    weight = jnp.maximum(top - own, 0) + FLOOR  # the same similarity, multiplied twice, may differ in the last bit
    return weight / weight.sum(1, keepdims=True)


def _perturbed(sim: Array, row: Block, col: Block, scale: Array) -> Array:
    """log weight + Gumbel noise of a tile: its arg-max along a row is a draw from that row's weights."""
    denominator, row_ids, row_words = row.data
    col_ids, kept, col_words = col.data
    weight = jnp.exp(sim * scale - denominator[:, None]) + FLOOR
    noise = _gumbel(_scrambled(row_words[:, None] + col_words[None, :]))
    allowed = (row_ids[:, None] != col_ids[None, :]) & kept[None, :]
    return jnp.where(allowed, jnp.log(weight) + noise.astype(weight.dtype), -jnp.inf)


def _words(key: Array, side: int, size: int, axis_name: str | None) -> Array:
    """32 random bits for each row of the whole batch; of those, this device's."""
    words = jax.random.bits(jax.random.fold_in(key, side), (size,), jnp.uint32)
    if axis_name is None:
        return words
    share = size // lax.axis_size(axis_name)
    return lax.dynamic_slice_in_dim(words, share * lax.axis_index(axis_name), share)


def _scrambled(x: Array) -> Array:
    """MurmurHash3's finaliser: a bijection of 32 bits in which each bit of the input moves half of the output's."""
    x = (x ^ (x >> 16)) * jnp.uint32(0x85EBCA6B)
    x = (x ^ (x >> 13)) * jnp.uint32(0xC2B2AE35)
    return x ^ (x >> 16)


def _gumbel(words: Array) -> Array:
    """Standard Gumbel noise from random bits."""
    uniform = ((words >> 8).astype(jnp.float32) + 0.5) * jnp.float32(2**-24)
    return -jnp.log(-jnp.log(uniform))


def _image_ids(ids: ArrayLike, batch: int) -> Array:
    known = jnp.asarray(ids)
    if known.shape != (batch,) or not jnp.issubdtype(known.dtype, jnp.integer):
        raise InputError(f"ids must be one integer for each of the {batch} images, got {known.dtype} {known.shape}.")
    return known


def _batch_of(logits: Array, captions: int) -> int:
    if logits.ndim != 2 or captions < 1 or logits.shape[1] != captions * logits.shape[0]:
        raise InputError(f"logits must be [B, BK] with K = {captions} captions an image, got {logits.shape}.")
    return logits.shape[0]


def _diagonal(batch: int) -> Array:
    return jnp.arange(batch)[:, None, None]
