"""Partners: whom each example is mixed with. Every function returns int32 [B] that depends on the key and data only."""

from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.draw import Per, check_positive
from mixcon.mixers.warp import wide_dtype

How = Literal["permutation", "derangement", "reverse", "roll", "self"]
FAR = -1e30  # log-probability of a forbidden partner; finite, so that a row without candidates stays defined


def choose_partner(key: Array, batch: int, how: "How | Array" = "permutation", per: Per = "batch") -> Array:
    """Partner indices by rule, or the ones given.

    Args:
        key: PRNG key.
        batch: B.
        how: "permutation" (fixed points allowed), "derangement" (the first of 11 permutations without a fixed point),
            "reverse" (i ↔ B-1-i), "roll" (i → i+1), "self"; or an int array [B] from any other rule of this module.
        per: "pair" draws belong to couples, so they take "reverse" whatever the default of the mixer.
    Returns:
        int32 [B].
    Raises:
        InputError: an unknown rule, a wrong length, one example only, `per="pair"` with explicit partners.
    Example:
        >>> choose_partner(jax.random.key(0), 4, "reverse").tolist()
        [3, 2, 1, 0]
    """
    if not isinstance(how, str):
        how = jnp.asarray(how)
        if per == "pair":
            raise InputError("per='pair' couples i with B-1-i; explicit partners need per='batch' or per='example'.")
        if how.shape != (batch,) or not jnp.issubdtype(how.dtype, jnp.integer):
            raise InputError(f"partner must be integers [{batch}]; got {how.dtype}{list(how.shape)}.")
        return how.astype(jnp.int32)
    if how not in _RULES:
        raise InputError(f"partner must be one of {', '.join(_RULES)} or an index array; got {how!r}.")
    if batch < 2 and how != "self":
        raise InputError("mixing needs at least two examples in the batch.")
    return _RULES["reverse" if per == "pair" else how](key, batch).astype(jnp.int32)


def derangement(key: Array, batch: int, attempts: int = 11) -> Array:
    """The first of `attempts` uniform permutations without a fixed point, else the last of them. int32 [B]."""
    many = jax.vmap(lambda k: jax.random.permutation(k, batch))(jax.random.split(key, attempts))
    good = (many != jnp.arange(batch)[None, :]).all(axis=1)
    return many[jnp.where(good.any(), jnp.argmax(good), attempts - 1)].astype(jnp.int32)


_RULES: dict[str, Callable[[Array, int], Array]] = {
    "permutation": lambda key, batch: jax.random.permutation(key, batch),
    "derangement": derangement,
    "reverse": lambda key, batch: jnp.arange(batch)[::-1],
    "roll": lambda key, batch: (jnp.arange(batch) + 1) % batch,
    "self": lambda key, batch: jnp.arange(batch),
}


def draw_partner(key: Array, logits: Array) -> Array:
    """One partner per row, `P(j | i) ∝ exp(logits_ij)`; a row with every entry ≤ -1e30 draws uniformly. int32 [B]."""
    return jax.random.categorical(key, logits, axis=-1).astype(jnp.int32)


def same_class_partner(key: Array, labels: Array, *, allow_self: bool = False) -> Array:
    """A uniform partner of the same class (the example itself when it is alone).

    Args:
        key: PRNG key.
        labels: integers [B].
        allow_self: let an example be its own partner when others exist.
    Returns:
        int32 [B].
    Example:
        >>> same_class_partner(jax.random.key(0), jnp.array([0, 1, 0, 1])).tolist()
        [2, 3, 0, 1]
    """
    same = labels[:, None] == labels[None, :]
    itself = jnp.eye(labels.shape[0], dtype=bool)
    logits = jnp.where(same, jnp.where(itself & (not allow_self), FAR / 2, 0.0), FAR)
    return draw_partner(key, logits)


def other_class_partner(key: Array, labels: Array) -> Array:
    """A uniform partner of another class (uniform over the batch when there is only one class). int32 [B]."""
    return draw_partner(key, jnp.where(labels[:, None] != labels[None, :], 0.0, FAR))


def label_kernel_logits(
    labels: Array,
    bank: Array | None = None,
    *,
    bandwidth: float | Array,
    kernel: Literal["gaussian", "tophat"] = "gaussian",
) -> Array:
    """Log-weights of label similarity, `-‖y_i - y_j‖² / (2 h²)` (or 0 within h, -1e30 beyond, for "tophat").

    Args:
        labels: regression targets [B] or [B, D].
        bank: candidates' targets [M] or [M, D]; the batch itself if None (then the diagonal is included).
        bandwidth: h > 0, in label units.
        kernel: "gaussian" or "tophat".
    Returns:
        float32 [B, M]; a row softmax gives the sampling probabilities.
    Raises:
        InputError: bandwidth ≤ 0, an unknown kernel, no labels, labels that are not finite.
    Example:
        >>> label_kernel_logits(jnp.array([0.0, 1.0]), bandwidth=1.0).tolist()
        [[-0.0, -0.5], [-0.5, -0.0]]

    Reference:
        Yao, Wang, Zhang, Zou, Finn, "C-Mixup: Improving Generalization in Regression", 2022
    """
    check_positive("bandwidth", bandwidth)
    for name, values in (("labels", labels), ("bank", bank)):
        check_labels(name, values)
    wide = wide_dtype(labels.dtype)  # label scales of 100 and more rule bfloat16 out
    rows = labels.astype(wide).reshape(labels.shape[0], -1)
    columns = rows if bank is None else bank.astype(wide).reshape(bank.shape[0], -1)
    squared = jnp.square(rows[:, None, :] - columns[None, :, :]).sum(axis=-1)
    if kernel == "tophat":
        return jnp.where(squared <= jnp.square(jnp.asarray(bandwidth, wide)), 0.0, FAR)
    if kernel != "gaussian":
        raise InputError(f"kernel must be 'gaussian' or 'tophat'; got {kernel!r}.")
    return -squared / (2.0 * jnp.square(jnp.asarray(bandwidth, wide)))


def label_kernel_partner(
    key: Array,
    labels: Array,
    bank: Array | None = None,
    *,
    bandwidth: float | Array,
    kernel: Literal["gaussian", "tophat"] = "gaussian",
) -> Array:
    """C-Mixup's partner, drawn with probability falling in label distance (see `label_kernel_logits`). int32 [B]."""
    return draw_partner(key, label_kernel_logits(labels, bank, bandwidth=bandwidth, kernel=kernel))


def label_pool_partner(
    key: Array,
    index: Array,
    bank: Array,
    *,
    bandwidth: float | Array,
    kernel: Literal["gaussian", "tophat"] = "gaussian",
) -> Array:
    """C-Mixup's partner for data too large for all pairs: the batch and as many random others are the pool.

    The pool is the batch's B examples and B uniform draws (with replacement) from the whole set; each of the batch
    draws its partner from these 2B by `label_kernel_logits`. Apply with `mix(plan, x, bank=inputs)`.

    Args:
        key: PRNG key.
        index: int [B], where the batch is in the whole set.
        bank: targets [M] or [M, D] of the whole set.
        bandwidth, kernel: as in `label_kernel_logits`.
    Returns:
        int32 [B], indices into the bank.
    Raises:
        InputError: a batch larger than the bank, index not integers [B]; as `label_kernel_logits`.
    Example:
        >>> y = jnp.array([0.0, 0.0, 9.0, 9.0])
        >>> partner = label_pool_partner(jax.random.key(0), jnp.array([0, 3]), y, bandwidth=0.1)
        >>> y[partner].tolist()
        [0.0, 9.0]

    Reference:
        Yao, Wang, Zhang, Zou, Finn, "C-Mixup: Improving Generalization in Regression", 2022
    """
    size = bank.shape[0]
    if index.ndim != 1 or not jnp.issubdtype(index.dtype, jnp.integer) or not 1 <= index.shape[0] <= size:
        raise InputError(f"index must be integers [B], B at most the bank's {size}; got {list(index.shape)}.")
    key_pool, key_partner = jax.random.split(key)
    others = jax.random.randint(key_pool, index.shape, 0, size)
    pool = jnp.concatenate([index.astype(jnp.int32), others])
    logits = label_kernel_logits(bank[index], bank[pool], bandwidth=bandwidth, kernel=kernel)
    return pool[draw_partner(key_partner, logits)]


def check_labels(name: str, values: Array | None) -> None:
    """Refuse known regression targets that are missing or not finite; traced values pass."""
    if values is not None and values.size == 0:
        raise InputError(f"{name} is empty: there is nobody to mix with.")
    if values is not None and not isinstance(values, jax.core.Tracer) and not np.isfinite(np.asarray(values)).all():
        raise InputError(f"{name} holds values that are not finite; leave those examples out.")


def nearest_partner(key: Array, features: Array, k: int = 5) -> Array:
    """A uniform choice among the k nearest other examples, by Euclidean distance.

    Args:
        key: PRNG key.
        features: [B, D].
        k: neighbours, 1 ≤ k < B.
    Returns:
        int32 [B].
    Raises:
        InputError: k outside 1..B-1.
    Example:
        >>> nearest_partner(jax.random.key(0), jnp.array([[0.0], [0.1], [5.0], [5.2]]), k=1).tolist()
        [1, 0, 3, 2]
    """
    batch = features.shape[0]
    if not 1 <= k < batch:
        raise InputError(f"k must lie in 1..{batch - 1}; got {k}.")
    squared = jnp.square(features[:, None, :] - features[None, :, :]).sum(axis=-1).astype(jnp.float32)
    squared = jnp.where(jnp.eye(batch, dtype=bool), jnp.inf, squared)
    _, near = jax.lax.top_k(-squared, k)
    return near[jnp.arange(batch), jax.random.randint(key, (batch,), 0, k)].astype(jnp.int32)


def one_cycle_partner(saliency: Array) -> Array:
    """Greedy one-cycle pairing of unlike saliency maps: start at the largest distance, go on to the farthest unused.

    Args:
        saliency: [B, H, W], each normalised.
    Returns:
        int32 [B], a single cycle through the batch.
    Example:
        >>> one_cycle_partner(jnp.array([0.0, 1.0, 5.0]).reshape(3, 1, 1)).tolist()
        [2, 0, 1]

    Reference:
        Kang, Kim, "GuidedMixup: An Efficient Mixup Strategy Guided by Saliency Maps", 2023
    """
    batch = saliency.shape[0]
    if batch < 2:
        raise InputError("mixing needs at least two examples in the batch.")
    flat = saliency.reshape(batch, -1).astype(jnp.float32)
    distance = jnp.sqrt(jnp.square(flat[:, None, :] - flat[None, :, :]).sum(axis=-1))
    distance = jnp.where(jnp.eye(batch, dtype=bool), -jnp.inf, distance)
    start, point = jnp.divmod(jnp.argmax(distance), batch)

    def step(_: int, state: tuple[Array, Array, Array]) -> tuple[Array, Array, Array]:
        partner, used, here = state
        used = used.at[here].set(True)
        target = jnp.argmax(jnp.where(used, -jnp.inf, distance[here]))
        return partner.at[here].set(target), used, target

    partner = jnp.zeros(batch, jnp.int32).at[start].set(point.astype(jnp.int32))
    used = jnp.zeros(batch, bool).at[start].set(True)
    partner, _, last = jax.lax.fori_loop(0, batch - 2, step, (partner, used, point))
    return partner.at[last].set(start.astype(jnp.int32))
