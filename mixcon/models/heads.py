"""What sits between a tower and an objective: projections, normalisation, the learned logit scale."""

import functools
import itertools
import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax import Array

from mixcon.errors import InputError
from mixcon.models.functional import Make, map_with_path
from mixcon.models.layers import choose, float_dtype, normal
from mixcon.models.regressors import uniform

PROJECTIONS = ("linear", "linear_bias", "mlp", "none")
LAST_NORMS = ("learned", "fixed", "none")
INITS = {  # kernel, bias
    "he": lambda fan_in, fan_out: (normal((2 / fan_in) ** 0.5), nnx.initializers.zeros),
    "xavier": lambda fan_in, fan_out: (normal((2 / (fan_in + fan_out)) ** 0.5), nnx.initializers.zeros),
    "uniform": lambda fan_in, fan_out: (uniform(fan_in**-0.5), uniform(fan_in**-0.5)),  # as PyTorch's layers
}


def dense(
    fan_in: int, fan_out: int, *, init: str, use_bias: bool = True, dtype: np.dtype, rngs: nnx.Rngs
) -> nnx.Linear:
    """A linear layer initialised by one of `INITS`."""
    kernel, bias = INITS[init](fan_in, fan_out)
    return nnx.Linear(fan_in, fan_out, kernel_init=kernel, bias_init=bias, use_bias=use_bias, dtype=dtype, rngs=rngs)


def l2_normalize(x: Array, *, eps: float = 1e-12) -> Array:
    """`x / max(||x||_2, eps)` over the last axis, in float32; a zero row stays zero, with finite gradient."""
    x = x.astype(jnp.float32)
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(x * x, axis=-1, keepdims=True), eps * eps))


class MlpHead(nnx.Module):
    """`fc2(relu(fc1(x)))`, the projection head of SimCLR-like methods; optionally deeper and batch-normalised.

    A layer that is normalised has no bias. The last one's norm is learned, without scale and bias, or absent.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        hidden: int,
        depth: int = 2,
        batch_norm: bool = False,
        last_norm: str = "learned",
        use_bias: bool = True,
        init: str = "he",
        dtype: np.dtype,
        rngs: nnx.Rngs,
    ):
        self.out_features = out_features
        widths = [in_features, *[hidden] * (depth - 1), out_features]
        normed = depth * batch_norm - (batch_norm and last_norm == "none")
        self.layers = nnx.List(
            [
                dense(a, b, init=init, use_bias=use_bias and i >= normed, dtype=dtype, rngs=rngs)
                for i, (a, b) in enumerate(itertools.pairwise(widths))
            ]
        )
        learned = [i + 1 < depth or last_norm == "learned" for i in range(normed)]
        self.norms = nnx.List(
            [
                nnx.BatchNorm(w, momentum=0.9, dtype=jnp.float32, use_scale=own, use_bias=own, rngs=rngs)
                for w, own in zip(widths[1:], learned, strict=False)
            ]
        )

    def __call__(self, x: Array, *, train: bool = False, key: Array | None = None) -> Array:
        """[B,in_features] -> [B,out_features]."""
        for i, layer in enumerate(self.layers):
            x = layer(x)
            if i < len(self.norms):
                if train and x.shape[0] < 2:
                    raise InputError("a batch of one example has no statistics to normalise by; take two or more.")
                x = self.norms[i](x.astype(jnp.float32), use_running_average=not train).astype(layer.dtype)
            x = jax.nn.relu(x) if i + 1 < len(self.layers) else x
        return x


def mlp_head(
    in_features: int,
    out_features: int,
    *,
    hidden: int,
    depth: int = 2,
    batch_norm: bool = False,
    last_norm: str = "learned",
    use_bias: bool = True,
    init: str = "he",
    dtype: Any = "float32",
) -> Make:
    """A projection head of `depth` linear layers with ReLU between them, as a constructor.

    With `batch_norm` every layer is normalised and has no bias; `last_norm` is "learned", "fixed" (no scale and bias)
    or "none" (the last layer is a linear one, with its bias unless `use_bias=False`).

    Weights are normal with variance 2/fan_in (init="he") or 2/(fan_in + fan_out) ("xavier"), biases zero; or both are
    uniform on ±1/√fan_in ("uniform").

    Reference: Chen et al., "A Simple Framework for Contrastive Learning of Visual Representations", 2020, section 2.1.
    """
    if min(in_features, out_features, hidden, depth) < 1:
        raise InputError("in_features, out_features, hidden and depth of mlp_head must all be at least 1.")
    choose(init, INITS, "init")
    choose(last_norm, LAST_NORMS, "last_norm")
    return functools.partial(
        _mlp_head,
        in_features,
        out_features,
        hidden=hidden,
        depth=depth,
        batch_norm=batch_norm,
        last_norm=last_norm,
        use_bias=use_bias,
        init=init,
        dtype=float_dtype(dtype),
    )


def _mlp_head(in_features: int, out_features: int, rngs: nnx.Rngs, **options: Any) -> MlpHead:
    return MlpHead(in_features, out_features, rngs=rngs, **options)


class Prototypes(nnx.Module):
    """Cosines of unit rows with learned prototypes; only the directions of the weights count.

    Reference: Caron et al., "Unsupervised Learning of Visual Features by Contrasting Cluster Assignments", 2020, 3.1.
    """

    def __init__(self, in_features: int, count: int, rngs: nnx.Rngs):
        if min(in_features, count) < 1:
            raise InputError(f"in_features={in_features} and count={count} of the prototypes must be at least 1.")
        self.kernel = nnx.Param(normal(in_features**-0.5)(rngs.params(), (in_features, count)))

    def __call__(self, x: Array, *, train: bool = False, key: Array | None = None) -> Array:
        """Unit rows [B,in_features] -> float32 [B,count]."""
        return jnp.dot(x, l2_normalize(self.kernel[...].T).T.astype(x.dtype), preferred_element_type=jnp.float32)


def projection(kind: str, in_features: int, out_features: int, *, dtype: np.dtype, rngs: nnx.Rngs) -> nnx.Module | None:
    """The map from a tower's features to the shared space; None for kind="none"."""
    choose(kind, PROJECTIONS, "projection")
    if kind == "mlp":
        return MlpHead(in_features, out_features, hidden=in_features, dtype=dtype, rngs=rngs)
    if kind == "none":
        if in_features != out_features:
            raise InputError(
                f"projection='none' needs a tower of embed_dim={out_features} features, not {in_features}."
            )
        return None
    return nnx.Linear(
        in_features,
        out_features,
        use_bias=kind == "linear_bias",
        kernel_init=normal(in_features**-0.5),
        dtype=dtype,
        rngs=rngs,
    )


class LogitScale(nnx.Module):
    """The learned multiplier of the similarities, and optionally an additive bias; both float32 scalars.

    `scale = exp(log)` (parametrization="log", CLIP and SigLIP) or `scale = 1 / temperature` ("temperature", ALIGN).

    Reference: Radford et al. 2021, section 2.5 (log form, initial 1/0.07); Zhai et al., "Sigmoid Loss for Language
        Image Pre-Training", 2023, algorithm 1 (initial scale 10, bias -10); Jia et al. 2021, equation 3 (temperature).
    """

    def __init__(self, init: float = 1 / 0.07, *, bias: float | None = None, parametrization: str = "log"):
        if not (math.isfinite(init) and init > 0):
            raise InputError(f"logit_scale={init} must be positive and finite; it multiplies the similarities.")
        choose(parametrization, ("log", "temperature"), "parametrization")
        if parametrization == "log":
            self.log = nnx.Param(jnp.asarray(math.log(init), jnp.float32))
        else:
            self.temperature = nnx.Param(jnp.asarray(1 / init, jnp.float32))
        if bias is not None:
            self.bias = nnx.Param(jnp.asarray(bias, jnp.float32))

    def __call__(self) -> tuple[Array, Array | None]:
        """(scale, bias or None)."""
        names = ("log", "temperature", "bias")
        return read_logit_scale({name: getattr(self, name)[...] for name in names if hasattr(self, name)})


def read_logit_scale(params: Mapping[str, Array]) -> tuple[Array, Array | None]:
    """(scale, bias or None) from the parameters of a `LogitScale`, for a loss that sees parameters and no module.

    Example:
        >>> scale, bias = read_logit_scale(params["logit_scale"])
    """
    scale = jnp.exp(params["log"]) if "log" in params else 1.0 / params["temperature"]
    return scale, params.get("bias")


def clamp_logit_scale(params: Any, *, low: float = 1.0, high: float = 100.0) -> Any:
    """Parameters with every `logit_scale` clipped to [low, high]; call it after the optimiser's update.

    The clip is on the parameter, outside automatic differentiation: inside the forward pass it would stop the
    gradient at the bound for good.

    Args:
        params: parameter dict, any depth.
        low, high: bounds of the multiplier (not of its logarithm); 0 and infinity for none.

    Returns:
        The same tree.

    Raises:
        InputError: bounds that are not 0 <= low <= high, high > 0.

    Reference: Radford et al. 2021, section 2.5 (upper bound 100).
    """

    if not (0 <= low <= high and high > 0):
        raise InputError(f"low={low} and high={high} must satisfy 0 <= low <= high with high > 0.")
    log_low, longest = (math.log(low), 1 / low) if low > 0 else (-math.inf, math.inf)

    def clamp(path: str, x: Array) -> Array:
        if path.endswith("logit_scale/log"):
            return jnp.clip(x, log_low, math.log(high))
        return jnp.clip(x, 1 / high, longest) if path.endswith("logit_scale/temperature") else x

    return map_with_path(clamp, params)
