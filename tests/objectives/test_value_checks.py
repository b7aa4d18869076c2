"""Inside jit, values are checked when the caller asks for it with checkify, and cost nothing otherwise."""

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import checkify

from mixcon import objectives as o
from mixcon.errors import InputError
from mixcon.objectives import clip, nt_xent

ROWS = jnp.eye(4)


def loss(image, scale):
    return clip(image, ROWS, logit_scale=scale)


@pytest.mark.parametrize(
    ("image", "scale", "said"),
    [
        (3 * ROWS, 10.0, "image must have rows of unit length"),
        (ROWS.at[0, 0].set(jnp.nan), 10.0, "image must have rows of unit length"),
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


OBJECTIVES = {
    "clip": lambda x: o.clip(x, ROWS, logit_scale=9.0),
    "siglip": lambda x: o.siglip(x, ROWS, logit_scale=9.0, logit_bias=-1.0),
    "m2mix": lambda x: o.m2mix(x, ROWS, 0.5, logit_scale=9.0),
    "clip_alignment_uniformity": lambda x: o.clip_alignment_uniformity(x, ROWS, logit_scale=9.0),
    "one_to_k": lambda x: o.one_to_k(x, ROWS, temperature=0.1),
    "hard_info_nce": lambda x: o.hard_info_nce(x, ROWS, temperature=0.1, top_k=2),
}


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("entry", [jnp.nan, jnp.inf, 1.02])
def test_one_row_that_is_not_of_unit_length_is_refused(name, entry):
    with pytest.raises(InputError, match="unit length"):
        OBJECTIVES[name](ROWS.at[2, 2].set(entry))
