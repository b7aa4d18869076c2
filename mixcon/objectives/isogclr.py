"""Global contrast at one temperature (SogCLR), or one for every example (iSogCLR), of two views or two modalities."""

from typing import Any, Literal

import jax.numpy as jnp

from mixcon.objectives.global_contrast import FirstVisit, Rate, average_of, individual
from mixcon.objectives.global_losses import margins_alone, of_pairs, of_views
from mixcon.objectives.objective import Objective
from mixcon.ops import Impl, checks


def isogclr(
    num_examples: int,
    *,
    temperature: float = 0.1,
    bounds: tuple[float, float] = (0.05, 1.0),
    radius: float = 0.4,
    rate: Rate = 0.03,
    momentum: float = 0.5,
    clip: float | None = 3.0,
    average: Rate = 0.8,
    first_visit: FirstVisit = "example",
    views: Literal["mean", "sum"] = "mean",
    dtype: Any = jnp.float32,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Objective:
    """Two views of each example, told from the views of all others, at a temperature of its own (iSogCLR).

    RGCL, the robust loss over the whole data set, `mean_i min_τ [ τ log E_j exp((S_ij - S_i+)/τ) + τ ρ ]`, of
    both views of i against both views of every other example. The value returned is
    `mean_i Σ_views [ (1/K) Σ_j exp(S_ij/τ_i)/s_i · S_ij - S_i+ ]` with constant weights: its gradient is the loss's, it
    may be negative, and it need not fall.

    Args:
      num_examples: N, size of the training set; ids are 0..N-1.
      temperature: what every τ starts from. bounds: of τ.
      radius: ρ, the divergence from uniform weights that is allowed; a larger one gives smaller temperatures.
      rate: η of τ, a number or a function of the epoch. momentum: of its gradient (1 - β). clip: of its gradient.
      average: γ, the share of the batch in the moving average s, a number or a function of the epoch.
      first_visit: see `Average`; the paper's code has "decay".
      views: the averages of both views are kept as their mean, or (an early code of SogCLR) as their sum.
      dtype: of the memory. normalize: divide rows by their norm first.
      impl, axis_name: see `mixcon.ops.pair_reduce`. Under `jax.jit` the memory may be sharded along its axis; under
        `axis_name` it is the same on every device.

    Returns:
      `Objective`: `init() -> Memory`; `apply(memory, first [B, D], second [B, D], *, index [B], epoch=0)
      -> (loss, aux, memory)`; aux with the means over the batch "temperature" (used in this step),
      "temperature_slope" (its gradient) and "log_average" (log s), and "temperature_at_bounds", the share held there.

    Raises:
      InputError: bounds that do not hold the temperature, numbers out of range; at `apply` fewer than two examples,
        ids outside 0..N-1 or given twice (where values are known), rows not of unit length.

    Example:
      >>> objective = isogclr(num_examples=50_000, temperature=0.1, radius=0.4)
      >>> memory = objective.init()
      >>> loss, aux, memory = objective.apply(memory, first, second, index=batch["index"])

    Reference: Qiu, Hu, Yuan, Zhou, Zhang, Yang, "Not All Semantics are Created Equal: Contrastive Self-supervised
      Learning with Automatic Temperature Individualization", 2023, eq. 2 and algorithm 1.
    """
    rule = individual(temperature, bounds, radius, rate, momentum, clip)
    moving = average_of(average, first_visit)
    return of_views(
        num_examples, rule, moving, views=views, dtype=dtype, normalize=normalize, impl=impl, axis_name=axis_name
    )


def sogclr(
    num_examples: int,
    *,
    temperature: float = 0.1,
    average: Rate = 0.8,
    first_visit: FirstVisit = "example",
    views: Literal["mean", "sum"] = "mean",
    dtype: Any = jnp.float32,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Objective:
    """`isogclr` at one constant temperature: `mean_i τ log E_j exp((S_ij - S_i+)/τ)` over the whole data set (SogCLR).

    Args and returns as for `isogclr`; aux has "log_average".

    Example:
      >>> objective = sogclr(num_examples=50_000, temperature=0.1)

    Reference: Yuan, Wu, Qiu, Du, Zhang, Zhou, Yang, "Provable Stochastic Optimization for Global Contrastive Learning:
      Small Batch Does Not Harm Performance", 2022, eq. 2 and algorithm 1.
    """
    checks.positive("temperature", temperature)
    moving = average_of(average, first_visit)
    return of_views(
        num_examples, temperature, moving, views=views, dtype=dtype, normalize=normalize, impl=impl, axis_name=axis_name
    )


def isogclr_clip(
    num_examples: int,
    *,
    temperature: float = 0.01,
    bounds: tuple[float, float] = (0.005, 1.0),
    radius: float = 6.0,
    rate: Rate = 0.03,
    momentum: float = 0.1,
    clip: float | None = 5.0,
    average: Rate = 0.8,
    first_visit: FirstVisit = "example",
    positive: bool = True,
    dtype: Any = jnp.float32,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Objective:
    """Images and texts, each told from the partners of all others at a temperature of its own (iSogCLR).

    The sum over both directions of `mean_i min_τ [ τ log E_j exp((S_ij - S_ii)/τ) + τ ρ ]`, images over texts and texts
    over images; the value returned is `Σ_directions mean_i (1/(B-1)) Σ_j exp((S_ij - S_ii)/τ_i)/s_i · (S_ij - S_ii)`
    with constant weights, whose gradient is the loss's.

    Args:
      num_examples: N; one for both modalities, or ids of `text_index` share 0..N-1.
      positive: count the pair itself, exp(0), in the sum that s averages, as the paper's code does (still over B-1).
      The others as for `isogclr`.

    Returns:
      `Objective`: `init() -> {"image": Memory, "text": Memory}`; `apply(state, image [B, D], text [B, D], *, index [B],
      text_index=None, epoch=0, logit_scale=None) -> (loss, aux, state)`. `text_index` are ids of the texts where they
      differ from the images'; `logit_scale` is accepted beside the stateless objectives', and not used. aux as for
      `isogclr`, each "_image" and "_text".

    Raises:
      InputError: as for `isogclr`.

    Example:
      >>> objective = isogclr_clip(num_examples=len(source), radius=6.0)
      >>> loss, aux, state = objective.apply(objective.init(), image, text, index=batch["index"])

    Reference: Qiu et al., 2023, eq. 6 and appendix (bimodal).
    """
    rule = individual(temperature, bounds, radius, rate, momentum, clip)
    return of_pairs(
        num_examples,
        rule,
        average_of(average, first_visit),
        margins_alone,
        positive=positive,
        dtype=dtype,
        normalize=normalize,
        impl=impl,
        axis_name=axis_name,
    )


def sogclr_clip(
    num_examples: int,
    *,
    temperature: float = 0.01,
    average: Rate = 0.8,
    first_visit: FirstVisit = "example",
    positive: bool = True,
    dtype: Any = jnp.float32,
    normalize: bool = False,
    impl: Impl = "auto",
    axis_name: str | None = None,
) -> Objective:
    """`isogclr_clip` at one constant temperature (SogCLR, two modalities).

    Args and returns as for `isogclr_clip`; aux has "log_average_image" and "log_average_text".

    Example:
      >>> objective = sogclr_clip(num_examples=len(source), temperature=0.01)

    Reference: Yuan et al., 2022, section 5.
    """
    checks.positive("temperature", temperature)
    return of_pairs(
        num_examples,
        temperature,
        average_of(average, first_visit),
        margins_alone,
        positive=positive,
        dtype=dtype,
        normalize=normalize,
        impl=impl,
        axis_name=axis_name,
    )
