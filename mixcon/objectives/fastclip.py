"""FastCLIP: global contrast of images and texts whose temperature is constant, one for each, or one learned for all."""

from collections.abc import Callable, Mapping
from typing import Any, Literal, get_args

import jax.numpy as jnp
from jax import Array, lax

from mixcon.errors import InputError
from mixcon.objectives.by_epoch import cosine_average
from mixcon.objectives.global_contrast import Rate, average_of, individual
from mixcon.objectives.global_losses import Assemble, Direction, Temperature, of_pairs
from mixcon.objectives.objective import Objective
from mixcon.ops import Impl, checks

Version = Literal["v0", "v1", "v2", "v3"]


def fastclip(
    num_examples: int,
    *,
    version: Version = "v3",
    average: float = 0.2,
    average_epochs: int = 0,
    radius: float = 6.5,
    temperature: float = 0.03,
    bounds: tuple[float, float] = (0.01, 1.0),
    rate: Rate = 0.0133,
    eps: float = 1e-14,
    dtype: Any = jnp.float32,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Objective:
    """Global contrast as FastCLIP trains it; with "v3" the robust loss at one temperature for all (RGCL-g).

    With r_i = g_i/(s_i + ε) of both directions: "v0" `mean(r^I + r^T)`, its `logit_scale` learned by this loss; "v1"
    the same at a constant temperature; "v2" the same with one temperature for each image and text; "v3"
    `τ mean(r^I + r^T) + τ ρ + τ mean(log s^I + log s^T)/2`, the first τ constant, so that `logit_scale` has the
    gradient of the robust loss. The features have half the gradient of r, as in the paper's code, where one half of
    the loss sees the anchors and the other the candidates.

    Args:
      num_examples: N, size of the training set.
      version: "v0" .. "v3".
      average: γ at the end. average_epochs: E, over which γ falls from 1 by a cosine; it is 1 in epoch 0 in any case.
      radius: ρ ("v2", "v3"). temperature: constant ("v1") or start ("v2"). bounds, rate: of τ in "v2" (Adam).
      eps: ε, beside s where it divides.
      The others as for `isogclr`.

    Returns:
      `Objective` as for `isogclr_clip`; "v0" and "v3" need `logit_scale=` at `apply`, a scalar (its gradient is exact).

    Raises:
      InputError: an unknown version, numbers out of range; at `apply` no logit_scale where one is learned.

    Example:
      >>> objective = fastclip(num_examples=len(source), version="v3", average=0.2, average_epochs=18)
      >>> loss, aux, state = objective.apply(state, image, text, index=index, epoch=3, logit_scale=jnp.exp(log_scale))

    Reference: Wei et al., "FastCLIP: A Suite of Optimization Techniques to Accelerate CLIP Training with Limited
      Resources", 2024, algorithm 1 and section 5.
    """
    if version not in get_args(Version):
        raise InputError(f"version must be one of {', '.join(get_args(Version))}; got {version!r}.")
    if eps < 0:
        raise InputError(f"eps={eps}, beside the moving average where it divides, must not be negative.")
    checks.positive("temperature", temperature)
    kinds: dict[str, Temperature] = {"v0": None, "v1": temperature, "v3": None}
    if version == "v2":
        kinds["v2"] = individual(temperature, bounds, radius, rate, 0.9, 5.0, 0.999)
    return of_pairs(
        num_examples,
        kinds[version],
        average_of(cosine_average(average, average_epochs), "example"),
        _robust(radius) if version == "v3" else _ratios,
        positive=False,
        eps=eps,
        dtype=dtype,
        normalize=normalize,
        impl=impl,
        axis_name=axis_name,
    )


def _ratios(found: Mapping[str, Direction], mean: Callable[[Array], Array], logit_scale: Array | None) -> Array:
    """mean(r^I + r^T). Its slope along s = 1/τ is mean(V^I + V^T), and along the features that of V/τ, taken half."""
    image, text = found["image"], found["text"]
    ratio = jnp.exp(image.log_mean - image.log_divisor) + jnp.exp(text.log_mean - text.log_divisor)
    halves = (image.margin / image.temperature + text.margin / text.temperature) / 2
    slope = halves - lax.stop_gradient(halves)
    if logit_scale is not None:
        margin = lax.stop_gradient(image.margin + text.margin)
        slope = slope + margin * (logit_scale - lax.stop_gradient(logit_scale))
    return mean(ratio + slope)


def _robust(radius: float) -> Assemble:
    def assemble(found: Mapping[str, Direction], mean: Callable[[Array], Array], logit_scale: Array | None) -> Array:
        assert logit_scale is not None
        log_average = mean(found["image"].log_average + found["text"].log_average) / 2
        ratio = _ratios(found, mean, logit_scale)
        return ratio / lax.stop_gradient(logit_scale) + (radius + log_average) / logit_scale

    return assemble
