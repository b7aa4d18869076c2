"""Augmentation of rows of features (tables): pure functions of the key, under jit, drawn per example."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax import Array

from mixcon.errors import InputError


def feature_noise(key: Array, rows: Array, *, std: float = 0.1) -> Array:
    """Adds normal noise of standard deviation `std` to every feature of [B, F] (standardised, so that one `std` fits).

    Example:
        >>> feature_noise(jax.random.key(0), jnp.zeros((2, 3)), std=0.5).shape
        (2, 3)
    """
    _check(rows)
    if std < 0:
        raise InputError(f"feature_noise: std={std} must not be negative.")
    return rows + jnp.asarray(std, rows.dtype) * jax.random.normal(key, rows.shape).astype(rows.dtype)


def drop_features(key: Array, rows: Array, *, rate: float = 0.2) -> Array:
    """Sets each feature of [B, F] to 0, the mean of a standardised one, with probability `rate`.

    Example:
        >>> float(drop_features(jax.random.key(0), jnp.ones((2, 3)), rate=1.0).sum())
        0.0
    """
    _check(rows)
    if not 0 <= rate <= 1:
        raise InputError(f"drop_features: rate={rate} must be a probability.")
    return jnp.where(jax.random.bernoulli(key, rate, rows.shape), jnp.zeros_like(rows), rows)


def _check(rows: Array) -> None:
    if rows.ndim != 2 or not jnp.issubdtype(rows.dtype, jnp.floating):
        raise InputError(f"rows must be float [B, F], not {rows.dtype} {rows.shape}.")
