"""Consecutive steps of the methods' own code (iSogCLR, SogCLR, LibAUC, FastCLIP): loss, gradient, whole memory."""

import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import objectives as o
from mixcon.objectives.by_epoch import cosine_average, cosine_rate

GOLDEN = pathlib.Path(__file__).parent.parent / "golden" / "isogclr.npz"
RTOL = 1e-7  # the codes add 1e-10 to s where it divides


def first_now(first: str, second: str) -> Any:
    """Both cases; the second one is slow."""
    return pytest.mark.parametrize("case", [first, pytest.param(second, marks=pytest.mark.slow)])


Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def load(case: str) -> tuple[Arrays, Arrays]:
    with np.load(GOLDEN) as file:
        parts = {side: f"{case}/{side}/" for side in ("in", "out")}
        into, out = ({k.removeprefix(p): file[k] for k in file.files if k.startswith(p)} for p in parts.values())
    return into, out


def numbers(x: Arrays, **other: Any) -> dict[str, Any]:
    """The settings of a case as arguments."""
    return {
        "temperature": float(x["tau_init"]),
        "bounds": (float(x["tau_min"]), float(x["tau_max"])),
        "radius": float(x["rho"]),
        "rate": float(x["eta"]),
        "momentum": 1 - float(x["beta_u"]),
        "average": float(x["gamma"]),
        "dtype": jnp.float64,
    } | other


def close(got: Any, want: Any, name: str) -> None:
    scale = np.abs(want[np.isfinite(want)]).max()
    np.testing.assert_allclose(got, want, rtol=RTOL, atol=RTOL * scale, err_msg=name)


# --- two views -------------------------------------------------------------------------------------------------------


def steps_of_views(objective: o.Objective, x: Arrays) -> Iterator[tuple[Any, Any, Any, Any]]:
    """loss, gradient, aux and memory after each step."""

    @jax.jit
    def step(memory: Any, features: Any, index: Any, epoch: Any) -> Any:
        def loss(features: Any) -> Any:
            loss, aux, new = objective.apply(memory, features[:, 0], features[:, 1], index=index, epoch=epoch)
            return loss, (aux, new)

        (value, (aux, new)), gradient = jax.value_and_grad(loss, has_aux=True)(features)
        return value, gradient, aux, new

    memory = objective.init()
    for features, index, epoch in zip(x["features"], x["index"], x["epoch"], strict=True):
        value, gradient, aux, memory = step(memory, features, index, epoch)
        yield value, gradient, aux, memory


@pytest.mark.parametrize("case", ["c0", "c1"])
def test_isogclr_of_two_views(case: str) -> None:
    x, want = load(case)
    made = o.isogclr(
        int(x["num_samples"]), first_visit="decay", **numbers(x, average=cosine_average(float(x["gamma"]))), clip=3.0
    )
    for t, (loss, gradient, aux, memory) in enumerate(steps_of_views(made, x)):
        found = {
            "loss": loss,
            "grad": gradient,
            "s": jnp.exp(memory.log_average),
            "u": memory.slope,
            "tau": memory.temperature,
            "mean_tau_before": aux["temperature"],
            "mean_grad_tau": aux["temperature_slope"],
        }
        for name, got in found.items():
            close(got, want[f"isogclr_official/{name}"][t], name)


@first_now("c0", "c1")
def test_sogclr_of_two_views_keeps_a_sum_in_its_early_code(case: str) -> None:
    x, want = load(case)
    options = {k: v for k, v in numbers(x).items() if k in ("temperature", "average", "dtype")}
    made = o.sogclr(int(x["num_samples"]), first_visit="decay", views="sum", **options)
    for t, (loss, gradient, _, memory) in enumerate(steps_of_views(made, x)):
        for name, got in {"loss": loss, "grad": gradient, "u": jnp.exp(memory.log_average)}.items():
            close(got, want[f"sogclr_repo/{name}"][t], name)


@first_now("c0", "c1")
@pytest.mark.parametrize("individual", [False, True])
def test_libauc_starts_where_the_batch_is_new(case: str, individual: bool) -> None:
    x, want = load(case)
    name, options = ("libauc_isogclr", numbers(x, clip=None)) if individual else ("libauc_sogclr", numbers(x))
    if not individual:
        options = {k: v for k, v in options.items() if k in ("temperature", "average", "dtype")}
    make = o.isogclr if individual else o.sogclr
    made = make(int(x["num_samples"]), first_visit="batch", **options)
    for t, (loss, gradient, _, memory) in enumerate(steps_of_views(made, x)):
        unit = x["features"][t]  # that code normalises once more, which takes the radial part away
        gradient = gradient - (gradient * unit).sum(-1, keepdims=True) * unit
        found = {"loss": loss, "grad": gradient, "u": jnp.exp(memory.log_average)}
        if individual:
            found |= {"tau": memory.temperature, "grad_tau": memory.slope}
        for key, got in found.items():
            close(got, want[f"{name}/{key}"][t], key)


# --- pairs -----------------------------------------------------------------------------------------------------------


def steps_of_pairs(objective: o.Objective, x: Arrays) -> Iterator[tuple[Any, Any, Any]]:
    """loss, gradients (image, text, scale) and state after each step; the scale stays at 1/tau_init."""

    @jax.jit
    def step(state: Any, image: Any, text: Any, ids: Any, epoch: Any, scale: Any) -> Any:
        def loss(image: Any, text: Any, scale: Any) -> Any:
            loss, _, new = objective.apply(
                state, image, text, index=ids[0], text_index=ids[1], epoch=epoch, logit_scale=scale
            )
            return loss, new

        return jax.value_and_grad(loss, argnums=(0, 1, 2), has_aux=True)(image, text, scale)

    state, scale = objective.init(), 1 / x["tau_init"]
    for t, epoch in enumerate(x["epoch"]):
        ids = x["image_index"][t], x["text_index"][t]
        (loss, state), gradients = step(state, x["image_features"][t], x["text_features"][t], ids, epoch, scale)
        yield loss, gradients, state


def true_log(want: Arrays, name: str, s: str, b: str, t: int) -> np.ndarray:
    """log (s exp b): those codes keep s relative to a bound b, which only prevents overflow."""
    with np.errstate(divide="ignore"):
        return np.log(want[f"{name}/{s}"][t]) + want[f"{name}/{b}"][t] * (want[f"{name}/{s}"][t] > 0)


def rate_of(x: Arrays) -> Any:
    eta = float(x["eta"])
    return eta if x["eta_schedule"] == 0 else cosine_rate(eta, int(x["max_epoch"]), float(x["eta_min"]))


@pytest.mark.parametrize("case", ["c2", "c3"])
@pytest.mark.parametrize("name", ["isogclr_official", "sogclr_official", "libauc_isogclr"])
def test_global_contrast_of_pairs(case: str, name: str) -> None:
    x, want = load(case)
    size, options = int(x["num_samples"]), numbers(x)
    libauc = name == "libauc_isogclr"
    if name == "sogclr_official":
        fixed = {k: v for k, v in options.items() if k in ("temperature", "average", "dtype")}
        made = o.sogclr_clip(size, first_visit="decay", **fixed)
    elif libauc:
        made = o.isogclr_clip(size, first_visit="batch", positive=False, clip=None, **options)
    else:
        made = o.isogclr_clip(size, first_visit="decay", **options | {"rate": rate_of(x)})
    # LibAUC sums over the negatives where the paper averages, and halves the sum of the directions.
    factor = (x["image_index"].shape[1] - 1) / 2 if libauc else 1
    s, u = ("u", "grad_tau") if libauc else ("s", "u")
    for t, (loss, gradients, state) in enumerate(steps_of_pairs(made, x)):
        close(factor * loss, want[f"{name}/loss"][t], "loss")
        for side, gradient in zip(("image", "text"), gradients, strict=False):
            close(factor * gradient, want[f"{name}/grad_{side}"][t], f"grad {side}")
            expected = true_log(want, name, f"{s}_{side}", f"b_{side}", t)
            np.testing.assert_allclose(state[side].log_average, expected, rtol=1e-6, atol=1e-6)
            if name != "sogclr_official":
                close(state[side].temperature, want[f"{name}/tau_{side}"][t], f"tau {side}")
                close(state[side].slope, want[f"{name}/{u}_{side}"][t], f"u {side}")


@first_now("c2", "c3")
@pytest.mark.parametrize("version", ["v0", "v1", "v2", "v3"])
def test_fastclip(case: str, version: Any) -> None:
    x, want = load(case)
    made = o.fastclip(
        int(x["num_samples"]),
        version=version,
        average=float(x["gamma"]),
        average_epochs=int(x["fastclip_gamma_decay_epochs"]),
        radius=float(x["fastclip_rho"]),
        temperature=float(x["tau_init"]),
        rate=float(x["fastclip_lr_tau"]),
        eps=float(x["fastclip_eps"]),
        dtype=jnp.float64,
    )
    name = f"fastclip_{version}"
    for t, (loss, gradients, state) in enumerate(steps_of_pairs(made, x)):
        close(loss, want[f"{name}/loss"][t], "loss")
        for side, gradient in zip(("image", "text"), gradients, strict=False):
            close(gradient, want[f"{name}/grad_{side}"][t], f"grad {side}")
            if version == "v2":
                expected = true_log(want, name, f"u_{side}", f"bound_{side}", t)
                np.testing.assert_allclose(state[side].log_average, expected, rtol=1e-9, atol=1e-9)
                close(state[side].temperature, want[f"{name}/tau_{side}"][t], f"tau {side}")
            else:
                close(jnp.exp(state[side].log_average), want[f"{name}/u_{side}"][t], f"u {side}")
        if version == "v2":
            close(state["image"].slope, want[f"{name}/m_image"][t], "m")
            close(state["image"].square, want[f"{name}/v_image"][t], "v")
        if version in ("v0", "v3"):
            close(gradients[2], want[f"{name}/grad_logit_scale"][t], "grad of the scale")


@pytest.mark.parametrize("case", ["c0", "c2"])
def test_the_plain_losses_of_the_same_vectors(case: str) -> None:
    x, want = load(case)
    if "features" in x:
        views, temperature = jnp.asarray(x["features"][0]), float(x["tau_init"])
        got = jax.jit(lambda v: o.nt_xent(v[:, 0], v[:, 1], temperature=temperature))(views)
        close(got, want["simclr/loss"][0], "simclr")
    else:
        got = jax.jit(o.clip)(x["image_features"][0], x["text_features"][0], logit_scale=1 / x["tau_init"])
        close(got, want["clip/loss"][0], "clip")
