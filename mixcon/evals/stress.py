"""Everything that a classifier's images may suffer, for one batch in one program: attacks, corruptions, occlusion.

Shapes: B images of a batch, N of the whole set, R ratios.
"""

from collections.abc import Iterator, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mixcon.evals.corruptions import corrupt
from mixcon.evals.robustness import LogitsFn, fgsm, mean_corruption_error, occlude, pgd


def predictions(
    logits_fn: LogitsFn,
    images: Array,
    labels: Array,
    *,
    key: Array,
    epsilon: float = 8 / 255,
    pgd_steps: int = 10,
    pgd_step_size: float = 2 / 255,
    corruptions: Sequence[str] = (),
    occlusion_patch: int = 0,
    occlusion_ratios: Sequence[float] = (),
    occlusion_fill: float | Sequence[float] = 0.0,
) -> dict[str, Array]:
    """Predicted classes of one batch under everything at once, one program for all severities.

    Args:
      logits_fn, images, labels: as `fgsm`.
      key: of random starts, noises and patches.
      epsilon: of FGSM and PGD; 0 leaves both out.
      pgd_steps, pgd_step_size: of PGD; 0 steps leave it out.
      corruptions: names of `mixcon.evals.corruptions.LEVELS` (not jpeg, which is made on the host).
      occlusion_patch, occlusion_ratios, occlusion_fill: of `occlude`.

    Returns:
      int [B] by `fgsm` and `pgd`, [B, 5] by `corrupt/<name>`, [B, R] by `occlude`; see `accuracies`.

    Raises:
      InputError: as `fgsm`, `pgd`, `corrupt` and `occlude`.

    Example:
      >>> flat = lambda x: x.reshape(len(x), -1)[:, :2]
      >>> sorted(predictions(flat, jnp.ones((2, 4, 4, 3)), jnp.zeros(2, int), key=jax.random.key(0), pgd_steps=0))
      ['fgsm']
    """
    keys = jax.random.split(key, 2 + len(corruptions))
    found: dict[str, Array] = {}
    if epsilon:
        found["fgsm"] = logits_fn(fgsm(logits_fn, images, labels, epsilon=epsilon)).argmax(axis=1)
    if epsilon and pgd_steps:
        moved = pgd(logits_fn, images, labels, epsilon=epsilon, steps=pgd_steps, step_size=pgd_step_size, key=keys[0])
        found["pgd"] = logits_fn(moved).argmax(axis=1)
    for name, noise in zip(corruptions, keys[2:], strict=True):

        def at(severity: Array, name: str = name, noise: Array = noise) -> Array:
            return logits_fn(corrupt(noise, images, name, severity=severity)).argmax(axis=1)

        found[f"corrupt/{name}"] = jax.lax.map(at, jnp.arange(1, 6)).T
    if occlusion_ratios:

        def hidden(ratio: Array) -> Array:
            covered = occlude(keys[1], images, patch=occlusion_patch, ratio=ratio, fill=occlusion_fill)
            return logits_fn(covered).argmax(axis=1)

        found["occlude"] = jax.lax.map(hidden, jnp.asarray(occlusion_ratios, jnp.float32)).T
    return found


def accuracies(found: dict[str, np.ndarray]) -> Iterator[tuple[str, float]]:
    """Of all batches' `predictions` and their `label` [N]: accuracy by name.

    `corrupt/<name>` is the mean over severities, `mean_corruption_error` the mean error over all corruptions,
    `occlude` the mean over ratios.

    Example:
      >>> dict(accuracies({"fgsm": np.array([1, 0]), "label": np.array([1, 1])}))
      {'fgsm': 0.5}
    """
    errors = []
    for name, predicted in found.items():
        if name in ("label", "index"):
            continue
        right = predicted.reshape(len(predicted), -1) == found["label"][:, None]
        yield name, float(right.mean())
        if name.startswith("corrupt/"):
            errors.append(1.0 - right.mean(0))
    if errors:
        yield "mean_corruption_error", mean_corruption_error(np.stack(errors))
