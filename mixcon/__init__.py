"""mixcon: mixing examples and contrasting them, in JAX."""

__version__ = "0.1.0"
