"""What a step optimises when a mixer is learned beside the classifier: student, teacher and generator in one program.

The teacher, `extra["teacher"]`, follows the student (`gradients.ema_teacher`) and is a constant for both players.
B batch, k sources of a mix, H×W pixels, h×w places of the feature map, C channels, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from mixcon.errors import InputError
from mixcon.mixers.learned import adversarial_generator_loss, mask_mean_loss, weighted_logit_cosine
from mixcon.mixers.losses import soft_cross_entropy
from mixcon.mixers.plan import Plan, dense_targets, mix, mix_targets
from mixcon.mixers.rounds import draw_round, learned_plan
from mixcon.models.functional import Apply

# classify(params, statistics, images, key=, train=) -> ((logits [B,K] by head, feature map [B,h,w,C]), statistics)
Classify = Callable[..., tuple[tuple[dict[str, jax.Array], jax.Array], Any]]


@dataclass(frozen=True)
class Rule:
    """How the game is played; the defaults are AdAutoMix's.

    AutoMix: two sources, α=2, margin 0.08, no adversarial step, mask_weight 0.1; SAMix: mask_variance 2 besides.

    Args:
      num_sources: images of a mix, k.
      random_count: draw it from 2..k.
      alpha: λ_i ~ Beta(α, α).
      margin: the student's mix is linear where min(λ_1, 1-λ_1) is not above it; -1 never.
      linear_share: ξ, of linear mixes in the loss of clean images; with three sources or more.
      beta: β, of the teacher's loss against the cosine in an adversarial step.
      cosine_sign: +1 as published, -1 keeps a mix like its images.
      adversarial_interval: every so many steps one is adversarial, beginning with the first; 0 none.
      mask_weight: of the loss that keeps the area of a two-source mask at λ.
      mask_variance: weight of the mask's variance in it.

    Raises:
      InputError: fewer than two sources, β or ξ outside [0, 1], a negative interval, an unknown sign.

    Reference: Qin et al., "Adversarial AutoMixup", 2024; Liu et al., "AutoMix", 2022; Li et al., "SAMix", 2021.
    """

    num_sources: int = 3
    random_count: bool = False
    alpha: float = 1.0
    margin: float = 0.03
    linear_share: float = 0.5
    beta: float = 0.3
    cosine_sign: float = 1.0
    adversarial_interval: int = 2
    mask_weight: float = 0.0
    mask_variance: float = 0.0

    def __post_init__(self) -> None:
        if self.num_sources < 2:
            raise InputError(f"a mix needs two images or more; num_sources={self.num_sources}.")
        for name in ("beta", "linear_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise InputError(f"{name}={getattr(self, name)} must lie in [0, 1].")
        if self.adversarial_interval < 0 or abs(self.cosine_sign) != 1:
            raise InputError(
                f"adversarial_interval={self.adversarial_interval} must not be negative, and "
                f"cosine_sign={self.cosine_sign} must be 1 or -1."
            )
        if self.mask_weight and self.num_sources > 2:
            raise InputError("mask_weight keeps the area of one mask at λ: it needs num_sources=2.")

    def draw(self, key: jax.Array, batch: int) -> dict[str, Plan]:
        """Who is mixed for the "generator" and who for the "student", masks not yet made."""
        plans = draw_round(key, batch, num_sources=self.num_sources, alpha=self.alpha, random_count=self.random_count)
        return dict(zip(("generator", "student"), plans, strict=True))

    def adversarial(self, step: jax.Array) -> jax.Array:
        """Whether the generator plays against the teacher in this step."""
        every = self.adversarial_interval
        return step % every == 0 if every else jnp.bool_(False)


def players(
    rule: Rule, classify: Classify, generate: Apply, *, classes: int, smoothing: float = 0.0
) -> tuple[Callable, Callable]:
    """`encode` and `objective` of a `Task` whose batch has image, label and the plans of `Rule.draw`.

    Student: `MCE(its mixes, their masks constants) + (1-ξ) CE(clean) + ξ MCE(linear mixes)`. Generator: through the
    teacher, `-β MCE + (1-β) cos` in an adversarial step and `MCE` in the others, with the loss of the mask's area.

    Args:
      rule: of the game.
      classify: `apply` of a classifier that gives (logits of heads "one" and "mix", feature map).
      generate: `apply` of the generator, an `AdaptiveMask` or a `MixBlock`.
      classes: K.
      smoothing: of the labels.

    Returns:
      The two functions. Parameters: those of the classifier, and "generator". Extra: "teacher", and the statistics of
      "student", "teacher_statistics" and "generator". The teacher sees clean images once for features and logits.

    Example:
      >>> task = Task(prepare, *players(Rule(), classify, generator.apply, classes=100))

    Reference: Qin et al., "Adversarial AutoMixup", 2024 (as in the authors' code).
    """

    def encode(params: dict, extra: dict, batch: Mapping[str, Any], *, key: jax.Array, train: bool) -> tuple:
        image, now = batch["image"], dict(extra)
        keys = iter(jax.random.split(key, 5))
        student = {name: part for name, part in params.items() if name != "generator"}

        def see(net: dict, statistics: str, x: jax.Array) -> tuple[dict[str, jax.Array], jax.Array]:
            found, now[statistics] = classify(net, now[statistics], x, key=next(keys), train=train)
            return found

        def masked(drawn: Plan, margin: float) -> Plan:
            def method(net: Any, features: jax.Array, *, train: bool, key: Any) -> Plan:
                return learned_plan(net, features, drawn, margin=margin)

            statistics = now["generator"]
            plan, now["generator"] = generate(params["generator"], statistics, features, train=train, method=method)
            return plan

        clean, features = see(extra["teacher"], "teacher_statistics", image)
        hard, given = masked(batch["generator"], -1.0), jax.lax.stop_gradient(masked(batch["student"], rule.margin))
        found = {
            "mask": hard.mask,
            "teacher_clean": clean["mix"],
            "teacher_mixed": see(extra["teacher"], "teacher_statistics", mix(hard, image))[0]["mix"],
            "student_mixed": see(student, "student", mix(given, image))[0]["mix"],
            "student_clean": see(student, "student", image)[0]["one"],
        }
        if rule.num_sources > 2 and rule.linear_share:
            found["student_linear"] = see(student, "student", mix(given._replace(mask=None), image))[0]["mix"]
        return found, now

    def objective(
        params: dict, state: dict, reps: dict, batch: Mapping[str, Any], *, key: jax.Array, step: jax.Array
    ) -> tuple[jax.Array, dict[str, jax.Array], dict]:
        label, hard, given = batch["label"], batch["generator"], batch["student"]

        def mce(logits: jax.Array, drawn: Plan) -> jax.Array:
            return soft_cross_entropy(logits, mix_targets(drawn, label, num_classes=classes, smoothing=smoothing))

        mixed, told = mce(reps["student_mixed"], given), mce(reps["teacher_mixed"], hard)
        clean = soft_cross_entropy(reps["student_clean"], dense_targets(label, classes, smoothing))
        if "student_linear" in reps:
            share = rule.linear_share * ((given.weight[0] > 0).sum() > 2)  # a drawn number of sources may be two
            clean = (1 - share) * clean + share * mce(reps["student_linear"], given)
        cosine = weighted_logit_cosine(reps["teacher_mixed"], reps["teacher_clean"][hard.partner.T], hard.weight[0])
        game = adversarial_generator_loss(
            told, cosine, rule.adversarial(step), beta=rule.beta, cosine_sign=rule.cosine_sign
        )
        if rule.mask_weight:
            area = mask_mean_loss(reps["mask"], hard.weight[0, 0], variance=rule.mask_variance)
            game = game + rule.mask_weight * area
        metrics = {"mixed": mixed, "clean": clean, "generator": told, "cosine": cosine, "spread": reps["mask"].std()}
        return mixed + clean + game, metrics, state

    return encode, objective


def check_scale(scale: int, image: tuple[int, ...], map_: tuple[int, ...], *, place: str) -> None:
    """Refuse a generator whose masks are not of the images' size.

    Args:
      scale: pixels per place of the map.
      image: shape [B, H, W, ...].
      map_: shape [B, h, w, C].
      place: name of the map.
    """
    (high, wide), (rows, columns) = image[1:3], map_[1:3]
    if (rows * scale, columns * scale) != (high, wide):
        raise InputError(
            f"generator.scale={scale}: the map {rows}×{columns} of {place!r}, so many times larger, is not the image's "
            f"{high}×{wide}; set the scale to {high // rows}, or tap another place."
        )
