"""Floating-point operations of a traced function: products and convolutions, loops multiplied out."""

from __future__ import annotations

import math
from typing import Any

from jax.extend.core import ClosedJaxpr, Jaxpr


def count(jaxpr: ClosedJaxpr | Jaxpr) -> float:
    """FLOPs of one call over all devices; a multiply-add counts as two, other element-wise work is left out.

    The body of a `while` without a known number of turns is counted once.

    Example:
      >>> import jax, jax.numpy as jnp
      >>> count(jax.make_jaxpr(jnp.dot)(jnp.ones((2, 3)), jnp.ones((3, 4))))
      48.0
    """
    inner = jaxpr.jaxpr if isinstance(jaxpr, ClosedJaxpr) else jaxpr
    return sum((of_equation(equation) for equation in inner.eqns), 0.0)


def of_equation(equation: Any) -> float:
    """FLOPs of one operation."""
    name, parameters = equation.primitive.name, equation.params
    if name == "dot_general":
        (contracted, _), _ = parameters["dimension_numbers"]
        left = equation.invars[0].aval.shape
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * math.prod(left[axis] for axis in contracted)
    if name == "conv_general_dilated":
        kernel = equation.invars[1].aval.shape
        numbers = parameters["dimension_numbers"]
        taps = math.prod(kernel) / kernel[numbers.rhs_spec[0]]
        # A backward convolution spreads one input by zeros between its rows: those products are not done.
        spread = math.prod(parameters["lhs_dilation"])
        return 2.0 * math.prod(equation.outvars[0].aval.shape) * taps / spread
    if name == "scan":
        return parameters["length"] * count(parameters["jaxpr"])
    if name == "cond":
        return max(count(branch) for branch in parameters["branches"])
    if name == "shard_map":
        sizes = parameters["mesh"].shape
        return math.prod(sizes[axis] for axis in parameters["newly_manual_axes"]) * inner_count(parameters)
    return inner_count(parameters)


def inner_count(parameters: dict[str, Any]) -> float:
    """FLOPs of the functions that an operation calls once."""
    found = [value for value in parameters.values() if isinstance(value, (ClosedJaxpr, Jaxpr))]
    return sum((count(each) for each in found), 0.0)
