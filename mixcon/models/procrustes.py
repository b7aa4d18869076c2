"""Two embedding spaces turned onto each other. Shapes: N pairs, D features."""

import jax.numpy as jnp
from jax import Array
from jax.typing import ArrayLike

from mixcon.errors import InputError
from mixcon.models.heads import l2_normalize


def procrustes_alignment(first: Array, second: Array, *, gap: ArrayLike = 0.0) -> Array:
    """The rotation W that brings one modality onto the other, as near as `gap` allows.

    `E' = norm(first + γ (mean second - mean first))`, `E'ᵀ second = U S Vᵀ`, `W = U Vᵀ`: the orthogonal matrix that
    minimises `Σ ‖W second_i - E'_i‖²`.

    Args:
      first, second: [N, D] unit rows, row i of each a pair. gap: γ; 0 asks for no gap, 1 for the one there is.

    Returns:
      W [D, D] float32, orthogonal: the second encoder's output becomes `second @ W.T`.

    Raises:
      InputError: shapes that differ.

    Example:
      >>> turned = second @ procrustes_alignment(first, second).T

    Reference: Fahim, Murphy, Fyshe, "It's Not a Modality Gap: Characterizing and Addressing the Contrastive Gap", 2024,
      section 4; Schönemann, "A generalized solution of the orthogonal Procrustes problem", 1966.
    """
    if first.shape != second.shape or first.ndim != 2:
        raise InputError(f"first and second are pairs and must share a shape [N, D]: {first.shape}, {second.shape}.")
    first, second = first.astype(jnp.float32), second.astype(jnp.float32)
    moved = l2_normalize(first + jnp.asarray(gap, jnp.float32) * (second.mean(0) - first.mean(0))[None])
    left, _, right = jnp.linalg.svd(moved.T @ second, full_matrices=False)
    return left @ right
