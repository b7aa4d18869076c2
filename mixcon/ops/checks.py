"""What can be refused before anything is traced, in words.

Values are looked at where they are known, that is outside jit. Inside, the same conditions are `checkify` debug checks:
absent from the program unless the caller asks for them with
`checkify.checkify(step, errors=checkify.user_checks)`, which then returns the sentence as an error value.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array
from jax.experimental import checkify

from mixcon.errors import InputError

MAX_INDEX = 2**31


def concrete(value: Any) -> np.ndarray | None:
    """The value as numpy when it is known now, None under tracing."""
    if isinstance(value, jax.core.Tracer) or value is None:
        return None
    if isinstance(value, jax.Array) and not value.is_fully_addressable:
        return None
    return np.asarray(value)


def on_request(name: str, rule: str, value: Any, holds: Callable[[Array], Array]) -> None:
    """A check inside jit, for callers who checkify; nothing at all for the others."""
    if isinstance(value, jax.core.Tracer):
        checkify.debug_check(jnp.all(holds(value)), f"{name} {rule}")


def features(queries: Any, keys: Any) -> None:
    """Refuse feature matrices that cannot be multiplied or indexed."""
    for q, k in zip(jax.tree.leaves(queries), jax.tree.leaves(keys), strict=True):
        if q.ndim != 2 or k.ndim != 2:
            raise InputError(f"queries and keys must be [B, D] and [N, D], got shapes {q.shape} and {k.shape}.")
        if q.shape[1] != k.shape[1]:
            raise InputError(f"queries have D = {q.shape[1]} but keys have D = {k.shape[1]}: project them to one size.")
        if 0 in q.shape or 0 in k.shape:
            raise InputError(f"queries {q.shape} and keys {k.shape} must not be empty.")
        if q.dtype != k.dtype or not jnp.issubdtype(q.dtype, jnp.floating):
            raise InputError(f"queries and keys must share one floating dtype, got {q.dtype} and {k.dtype}: cast one.")
        if max(q.shape[0], k.shape[0]) >= MAX_INDEX:
            raise InputError(f"positions are 32-bit: B = {q.shape[0]} and N = {k.shape[0]} must be below 2**31.")


def leading(name: str, tree: Any, size: int, what: str) -> None:
    """Refuse row (column) data whose leading axis is not the batch of queries (keys)."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(tree):
        if jnp.ndim(leaf) < 1 or leaf.shape[0] != size:
            where = name + jax.tree_util.keystr(path)
            raise InputError(f"{where} must have one entry for each of the {size} {what}, got shape {jnp.shape(leaf)}.")


def positive(name: str, value: Any) -> None:
    """Refuse a scale or temperature that is not finite and above zero."""
    known = concrete(value)
    if known is None:
        on_request(name, "must be finite and above zero", value, lambda v: jnp.isfinite(v) & (v > 0))
    elif not (np.all(np.isfinite(known)) and np.all(known > 0)):
        raise InputError(f"{name} must be finite and above zero, got {known.min()} .. {known.max()}.")


def finite(name: str, value: Any) -> None:
    """Refuse numbers that are not finite."""
    known = concrete(value)
    if known is None:
        on_request(name, "must be finite", value, jnp.isfinite)
    elif bad := int((~np.isfinite(known.astype(np.float64))).sum()):
        raise InputError(f"{name} must be finite; {bad} of {known.size} numbers are not.")


def nonnegative(name: str, value: Any) -> None:
    """Refuse weights that are negative or not finite."""
    known = concrete(value)
    if known is None:
        on_request(name, "must be finite and not negative", value, lambda v: jnp.isfinite(v) & (v >= 0))
    elif known.dtype != bool and not (np.all(np.isfinite(known)) and np.all(known >= 0)):
        raise InputError(f"{name} must be finite and not negative, got {known.min()} .. {known.max()}.")


def unit_interval(name: str, value: Any) -> None:
    """Refuse shares outside [0, 1]."""
    known = concrete(value)
    if known is None:
        on_request(name, "must lie in [0, 1]", value, lambda v: (v >= 0) & (v <= 1))
    elif not np.all((known >= 0) & (known <= 1)):
        raise InputError(f"{name} must lie in [0, 1], got {known.min()} .. {known.max()}.")


def permutation(name: str, value: Any) -> None:
    """Refuse what is no permutation of range(N)."""
    known = concrete(value)
    if known is None:
        on_request(name, "must be a permutation", value, lambda v: jnp.sort(v) == jnp.arange(v.shape[0], dtype=v.dtype))
    elif known.dtype.kind not in "iu" or not np.array_equal(np.sort(known), np.arange(known.size)):
        raise InputError(f"{name} must be a permutation of 0 .. {known.size - 1}: every index once.")


def some_positive(name: str, mass: Array, mask: Any) -> None:
    """Refuse anchors, other than padding, that have no positive."""
    known, kept = concrete(mass), True if mask is None else concrete(mask)
    if known is None or kept is None:
        raise InputError("empty='error' looks at values, so it works outside jit; under jit read `without_positive`.")
    if lacking := np.flatnonzero((known <= 0) & kept).tolist():
        raise InputError(
            f"positives: {len(lacking)} of the {name} have none, e.g. {lacking[:5]}; empty='zero' allows it."
        )


def unit_norm(name: str, value: Array, tolerance: float = 1e-2) -> None:
    """Refuse rows that are not of unit length, as far as rows that were once of 16 bits can be."""
    known = concrete(value)
    if known is None:
        on_request(
            name,
            "must have rows of unit length",
            value,
            lambda v: jnp.abs(jnp.linalg.norm(v.astype(jnp.float32), axis=-1) - 1) <= tolerance,
        )
        return
    norms = np.linalg.norm(known.astype(np.float64), axis=-1)
    if not np.all(np.abs(norms - 1) <= tolerance):  # nor is NaN
        raise InputError(f"{name} must have rows of unit length, got norms {norms.min():.4g} .. {norms.max():.4g}.")
