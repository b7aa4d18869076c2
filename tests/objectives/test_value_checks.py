"""Inside jit, values are checked when the caller asks for it with checkify, and cost nothing otherwise."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import checkify

from mixcon.objectives import clip, nt_xent

ROWS = jnp.eye(4)


def loss(image, scale):
    return clip(image, ROWS, logit_scale=scale)


@pytest.mark.parametrize(
    ("image", "scale", "said"),
    [
        (3 * ROWS, 10.0, "image must have rows of unit length"),
        (ROWS, -1.0, "logit_scale must be finite and above zero"),
        (ROWS, jnp.nan, "logit_scale must be finite and above zero"),
    ],
)
def test_bad_values_are_said_under_jit(image, scale, said):
    checked = jax.jit(checkify.checkify(jax.value_and_grad(loss), errors=checkify.user_checks))
    error, _ = checked(image, jnp.float32(scale))
    assert said in error.get()
    good, _ = checked(ROWS, jnp.float32(10.0))
    assert good.get() is None


def test_without_the_request_there_is_nothing_in_the_program():
    program = jax.jit(loss).lower(ROWS, jnp.float32(1.0)).compile().as_text()
    assert "sqrt" not in program


def test_temperatures_are_checked_too():
    checked = jax.jit(checkify.checkify(lambda t: nt_xent(ROWS, ROWS, temperature=t), errors=checkify.user_checks))
    assert "temperature" in checked(jnp.float32(0.0))[0].get()
