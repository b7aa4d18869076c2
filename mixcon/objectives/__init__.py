"""Losses over representations, thin on top of `mixcon.ops`: functions, and `Objective(init, apply)` pairs.

    from mixcon.objectives import clip

    loss = clip(image, text, logit_scale=jnp.exp(log_scale))
"""

from mixcon.objectives.clip import clip
from mixcon.objectives.siglip import siglip

__all__ = [
    "clip",
    "siglip",
]
