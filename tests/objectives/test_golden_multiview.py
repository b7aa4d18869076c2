"""Improved baselines for vision and language against their golden vectors, in float64; what they refuse."""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import objectives as o
from mixcon import ops
from mixcon.errors import InputError
from mixcon.train import optim

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "vlp-baselines.npz"
RTOL = 1e-9


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def load(case: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(inputs, outputs) of one case."""
    with np.load(GOLDEN) as file:
        arrays = {k: file[k] for k in file.files if k.startswith(f"{case}/")}
    into = {k.removeprefix(f"{case}/in/"): v for k, v in arrays.items() if f"{case}/in/" in k}
    return into, {k.removeprefix(f"{case}/out/"): v for k, v in arrays.items() if f"{case}/out/" in k}


def views(x: dict[str, Any], kind: str, suffix: str = "") -> o.PairedViews:
    """`kind` is z (of the heads), v or p (of projectors and predictors); the files have views first."""
    weak, strong = ("{}_{}_global", "h_{1}_local") if kind == "z" else ("{}_{}", "{}_{}_local")
    local = [x[strong.format(kind, side) + suffix] for side in ("image", "text")]
    whole = [x[weak.format(kind, side) + suffix] for side in ("image", "text")]
    return o.PairedViews(*whole, *(jnp.swapaxes(each, 0, 1) for each in local))


def losses(x: dict[str, Any]) -> dict[str, Any]:
    """Every loss of the file as a function of the differentiable inputs."""
    smoothing, reduction = float(x["label_smoothing"]), "sum" if x["loss_sum"] else "mean"
    epsilon, rounds = float(x["target_epsilon"]), int(x["sk_iters"])

    def recipe(y: dict[str, Any], smoothing: float = smoothing) -> Any:
        scales = dict(logit_scale=y["logit_scale"], view_logit_scale=y["h_logit_scale"])
        options = dict(label_smoothing=smoothing, reduction=reduction, normalize=True, has_aux=True)
        return o.multiview_clip(views(y, "z"), **scales, **options)

    def plus(term: Any, smoothing: float = smoothing) -> Any:
        def loss(y: dict[str, Any]) -> Any:
            value, aux = recipe(y, smoothing)
            extra = term(y)
            return value + extra, aux | {"term": extra}

        return loss

    def barlip(y: dict[str, Any]) -> Any:
        return o.barlip(views(y, "v"), off_diagonal_weight=y["barlip_lambda"], scale=y["barlip_scale"])

    def swalip(y: dict[str, Any]) -> Any:
        options = dict(logit_scale=y["h_logit_scale"], epsilon=epsilon, num_iters=rounds, normalize=True)
        return y["swalip_weight"] * o.swalip(views(y, "z"), **options)

    def first_swalip(y: dict[str, Any]) -> Any:
        scores = [y[f"proto_scores_{side}"] for side in ("image", "text")]
        options = dict(logit_scale=1 / y["swalip_temperature"], epsilon=epsilon, num_iters=rounds)
        term = o.swapped_assignment(*scores, **options)
        weak = [y[f"z_{side}_global"] for side in ("image", "text")]
        return term + o.clip(*weak, logit_scale=y["logit_scale"], normalize=True), {"term": term}

    return {
        "cl2l": recipe,
        "barlip": plus(barlip),
        "siamlip": plus(lambda y: o.siamlip(views(y, "p"), views(y, "v"))),
        "byolip": plus(lambda y: o.siamlip(views(y, "p"), views(y, "v", "_momentum"))),
        "swalip": plus(swalip, smoothing=0.0),
        "swalip_v1": first_swalip,
    }


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", ["c0", "c1"])
def test_losses_parts_and_gradients(case: str) -> None:
    x, want = load(case)
    floats = {k: jnp.asarray(v) for k, v in x.items() if v.dtype == np.float64}
    every = jax.jit(lambda y: {k: jax.value_and_grad(f, has_aux=True)(y) for k, f in losses(x).items()})
    for name, ((loss, aux), gradients) in every(floats).items():
        np.testing.assert_allclose(loss, want[f"{name}/loss"], rtol=RTOL, err_msg=name)
        checked = [k for k in want if k.startswith(f"{name}/grad_")]
        assert len(checked) >= 2
        for key in checked:
            got = gradients[key.removeprefix(f"{name}/grad_")]
            np.testing.assert_allclose(got, want[key], rtol=1e-7, atol=1e-11, err_msg=key)
        term = {"byolip": "siamlip", "swalip_v1": "swalip"}.get(name, name)
        if f"{name}/{term}_loss" in want:
            weight = float(x["swalip_weight"]) if name == "swalip" else 1.0
            np.testing.assert_allclose(aux["term"], weight * want[f"{name}/{term}_loss"], rtol=RTOL, err_msg=name)
        if f"{name}/clip_loss" in want:
            check_parts(aux, {k.removeprefix(f"{name}/"): v for k, v in want.items() if k.startswith(f"{name}/")})


def check_parts(aux: dict[str, Any], want: dict[str, np.ndarray]) -> None:
    for way, side in (("image_to_text", "image"), ("text_to_image", "text")):
        for strength, part in (("weak", "global"), ("strong", "local")):
            np.testing.assert_allclose(aux[f"{strength}/loss_{way}"], want[f"clip_loss_{side}_{part}"], rtol=RTOL)
    np.testing.assert_allclose(100 * aux["accuracy_image_to_text"], want["clip_acc"], rtol=RTOL)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", ["c0", "c1"])
def test_without_strong_views_it_is_clip(case: str) -> None:
    x, want = load(case)
    scale, weak = x["logit_scale"], [jnp.asarray(x[f"z_{side}_global"]) for side in ("image", "text")]
    reduction = "sum" if x["loss_sum"] else "mean"
    got = o.multiview_clip(o.PairedViews(*weak), logit_scale=scale, reduction=reduction, normalize=True)
    np.testing.assert_allclose(got, want["cl2l_noaug/loss"], rtol=RTOL)
    np.testing.assert_allclose(o.clip(*weak, logit_scale=scale, normalize=True), want["clip/loss"], rtol=RTOL)


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", ["c0", "c1"])
def test_assignments(case: str) -> None:
    x, want = load(case)
    for side in ("image", "text"):
        options = dict(epsilon=float(x["target_epsilon"]), num_iters=int(x["sk_iters"]))
        got = ops.sinkhorn_knopp(jnp.asarray(x[f"proto_scores_{side}"]), **options)
        np.testing.assert_allclose(got, want[f"sinkhorn_{side}"], rtol=RTOL)


def test_schedule() -> None:
    x, want = load("c2")
    per_epoch = int(x["iters_per_epoch"])
    rate = optim.schedule(
        peak=float(x["base_lr"]),
        start=float(x["start_lr"]),
        end=float(x["final_lr"]),
        warmup_steps=int(x["warmup_epochs"]) * per_epoch,
        steps=int(x["epochs"]) * per_epoch,
    )
    with jax.numpy_dtype_promotion("standard"):  # optax promotes implicitly
        got = [rate(step) for step in range(len(want["lr"]))]
    np.testing.assert_allclose(got, want["lr"], rtol=1e-5)


WEAK = jnp.eye(4)
STRONG = jnp.stack([WEAK, WEAK], axis=1)


def test_one_side_without_strong_views_is_refused() -> None:
    with pytest.raises(InputError, match="must both be"):
        o.multiview_clip(o.PairedViews(WEAK, WEAK, STRONG), logit_scale=1.0)


def test_different_numbers_of_views_are_refused() -> None:
    with pytest.raises(InputError, match="with one V"):
        o.barlip(o.PairedViews(WEAK, WEAK, STRONG, STRONG[:, :1]))


def test_targets_of_fewer_views_are_refused() -> None:
    with pytest.raises(InputError, match="5 pairs of views, targets 1"):
        o.siamlip(o.PairedViews(WEAK, WEAK, STRONG, STRONG), o.PairedViews(WEAK, WEAK))


def test_swapping_needs_two_views() -> None:
    with pytest.raises(InputError, match="swaps two strong views"):
        o.swalip(o.PairedViews(WEAK, WEAK, STRONG[:, :1], STRONG[:, :1]), logit_scale=1.0)


def test_a_zero_row_has_no_cosine() -> None:
    value, slope = jax.value_and_grad(o.negative_cosine)(WEAK.at[0].set(0.0), WEAK)
    np.testing.assert_allclose(value, 0.5)
    assert np.isfinite(slope).all()
