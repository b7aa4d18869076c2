"""The examples in the docstrings run."""

import doctest
import importlib
import pkgutil

import jax
import jax.numpy as jnp
import pytest

import mixcon.mixers

MODULES = [info.name for info in pkgutil.iter_modules(mixcon.mixers.__path__)]


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    module = importlib.import_module(f"mixcon.mixers.{name}")
    result = doctest.testmod(module, extraglobs={"jax": jax, "jnp": jnp}, optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


def test_every_policy_has_an_example_and_a_reference():
    for name, policy in mixcon.mixers.MIXERS.items():
        assert ">>>" in policy.__doc__, name
        assert "Reference:" in policy.__doc__, name
        assert "Raises" in policy.__doc__, name
