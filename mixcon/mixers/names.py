"""Every mixing policy by name: what `mixcon list` shows and what a config may ask for."""

from collections.abc import Callable
from typing import Any

from mixcon.mixers.align import alignmix
from mixcon.mixers.augmix import augmix
from mixcon.mixers.compose import mixup_or_cutmix, unmix
from mixcon.mixers.frequency import fmix
from mixcon.mixers.interval import PolicyHead
from mixcon.mixers.learned import AdaptiveMask, MixBlock
from mixcon.mixers.linear import cmixup, imix, manifold_mixup, mixco, mixup, multi_mixup, regmixup, simplex_mixup
from mixcon.mixers.puzzle import puzzlemix
from mixcon.mixers.region import cutmix, gridmix, resizemix, smoothmix
from mixcon.mixers.salient import attentivemix, guidedmixup, saliencymix, snapmix
from mixcon.mixers.text import spanmix, ssmix
from mixcon.mixers.token import maskmix, mergemix, smmix, token_cutmix, tokenmix

MIXERS: dict[str, Callable[..., Any]] = {
    # one share for the whole example
    "mixup": mixup,
    "manifold_mixup": manifold_mixup,
    "mixco": mixco,
    "imix": imix,
    "multi_mixup": multi_mixup,
    "cmixup": cmixup,
    "regmixup": regmixup,
    "simplex_mixup": simplex_mixup,
    # regions of a picture
    "cutmix": cutmix,
    "smoothmix": smoothmix,
    "gridmix": gridmix,
    "resizemix": resizemix,
    "fmix": fmix,
    # with saliency, attention or features as data
    "saliencymix": saliencymix,
    "attentivemix": attentivemix,
    "guidedmixup": guidedmixup,
    "snapmix": snapmix,
    "puzzlemix": puzzlemix,
    "alignmix": alignmix,
    # tokens
    "token_cutmix": token_cutmix,
    "tokenmix": tokenmix,
    "maskmix": maskmix,
    "smmix": smmix,
    "mergemix": mergemix,
    "spanmix": spanmix,
    # several policies, or one image with itself
    "mixup_or_cutmix": mixup_or_cutmix,
    "unmix": unmix,
    "augmix": augmix,
}

TEXT: dict[str, Callable[..., Any]] = {"spanmix": spanmix, "ssmix": ssmix}  # of token sequences

LEARNED: dict[str, Callable[..., Any]] = {
    "automix": MixBlock,
    "samix": MixBlock,
    "adautomix": AdaptiveMask,
    "adamixup": PolicyHead,
}
