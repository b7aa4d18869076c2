"""The contrastive gap and the behaviour of contrastive loss against their golden vectors, in float64."""

import functools
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import objectives as o
from mixcon.errors import InputError
from mixcon.evals import alignment, modality_gap, normalized
from mixcon.objectives.hardness import number_kept

GOLDEN = pathlib.Path(__file__).parent.parent / "golden"
RTOL = 1e-9
# weights of contrast, alignment, uniformity, cross-modal uniformity
TERMS = {
    "clip": (1, 0, 0, 0),
    "cu": (1, 0, 1, 0),
    "ca": (1, 1, 0, 0),
    "cua": (1, 1, 1, 0),
    "cuaxu": (1, 1, 1, 1),
    "uaxu_nocontrastive": (0, 1, 1, 1),
}


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


def load(name: str, case: str) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(inputs, outputs) of one case."""
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {k: file[k] for k in file.files if k.startswith(f"{case}/") and file[k].dtype.kind in "fiub"}
    into = {k.removeprefix(f"{case}/in/"): jnp.asarray(v) for k, v in arrays.items() if f"{case}/in/" in k}
    return into, {k.removeprefix(f"{case}/out/"): v for k, v in arrays.items() if f"{case}/out/" in k}


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("case", ["c0", "c1", "c2"])
def test_losses_of_the_gap_and_their_gradients(case: str) -> None:
    x, want = load("contrastive-gap", case)
    scale = 1 / x["temperature"]

    def combined(weights: Any, image: Any, text: Any) -> Any:
        names = ("contrast", "alignment", "uniformity", "cross_uniformity")
        options = dict(zip(names, map(float, weights), strict=True))
        return o.clip_alignment_uniformity(image, text, logit_scale=scale, normalize=True, **options)

    losses = {name: functools.partial(combined, weights) for name, weights in TERMS.items()}
    losses["cyclip"] = lambda i, t: combined(TERMS["cu"], i, t) + o.cyclic(i, t, normalize=True)
    every = jax.jit(lambda i, t: {k: jax.value_and_grad(f, argnums=(0, 1))(i, t) for k, f in losses.items()})
    for name, (loss, gradients) in every(x["image"], x["text"]).items():
        np.testing.assert_allclose(loss, want[f"{name}/loss"], rtol=RTOL, err_msg=name)
        for side, got in zip(("image", "text"), gradients, strict=True):
            np.testing.assert_allclose(got, want[f"{name}/grad_{side}"], rtol=1e-7, atol=1e-11, err_msg=name)


@pytest.mark.usefixtures("double")
def test_terms_of_the_gap() -> None:
    x, want = load("contrastive-gap", "c1")

    @jax.jit
    def measured(image: Any, text: Any) -> Any:
        options = {"logit_scale": 1 / x["temperature"], "cross_uniformity": 1.0, "has_aux": True}
        within = o.cyclic(image, text, in_modal=1.0, cross_modal=0.0)
        return o.clip_alignment_uniformity(image, text, **options), o.cyclic(image, text), within

    (loss, parts), cycles, within = measured(o.l2_normalize(x["image"]), o.l2_normalize(x["text"]))
    names = {"contrast": "inter_modality"}
    for name in ("contrast", "alignment", "uniformity", "cross_uniformity"):
        np.testing.assert_allclose(parts[f"term/{name}"], want[f"term/{names.get(name, name)}"], rtol=RTOL)
    np.testing.assert_allclose(loss, sum(v for k, v in parts.items() if k.startswith("term/")), rtol=RTOL)
    size, dim = x["image"].shape
    np.testing.assert_allclose(cycles, want["term/cyclic"], rtol=RTOL)
    # The mean squared difference of squared distances, over i < j, is the in-modal cycle in other units.
    np.testing.assert_allclose(4 * within / (size - 1), want["term/uniform_cyclic"], rtol=RTOL)
    # And that of difference vectors is what alignment has beyond the centroids' distance.
    image, text = normalized(x["image"]), normalized(x["text"])
    spread = alignment(image, text) - modality_gap(image, text)["centroid_distance"] ** 2
    np.testing.assert_allclose(2 * spread / dim, want["term/cyclic_direction"], rtol=1e-5)


def test_equal_modalities_have_no_cycles() -> None:
    rows = o.l2_normalize(jax.random.normal(jax.random.key(0), (50, 8)))
    assert float(o.cyclic(rows, rows)) == 0


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("impl", ["dense", "tiled"])
def test_losses_over_a_memory(impl: Any) -> None:
    x, want = load("contrastive-behaviour", "c0")
    top_k, alpha, weight = (float(x[name]) for name in ("top_k", "alpha", "simple_lambda"))
    place = {"positive_index": x["index"], "impl": impl}

    @jax.jit
    def measured(features: Any, bank: Any) -> dict[str, Any]:
        each = {"reduction": "none", **place}
        return {
            "hard_topk": o.hard_info_nce(features, bank, top_k=int(top_k), temperature=x["temperature"], **each),
            "hard_quantile": o.hard_info_nce(features, bank, alpha=alpha, temperature=x["temperature"], **each),
            "hard_simple": o.hard_simple_contrastive(features, bank, top_k=int(top_k), **each),
            "simple": o.simple_contrastive(features, bank, negative_weight=weight, **each),
            "mean": o.simple_contrastive(features, bank, **place),
        }

    found = measured(x["features"], x["bank"])
    mean = found.pop("mean")  # the λ that was recorded is 1/(N-1), the default
    np.testing.assert_allclose(mean, want["simple_per_anchor"].mean(), rtol=RTOL)
    for name, loss in found.items():
        np.testing.assert_allclose(loss, want[f"{name}_per_anchor"], rtol=RTOL, err_msg=name)

    def ordinary(features: Any) -> Any:
        return o.info_nce(features, x["bank"], temperature=x["temperature"], **place)

    loss, gradient = jax.jit(jax.value_and_grad(ordinary))(x["features"])
    np.testing.assert_allclose(loss, want["contrastive_per_anchor"].mean(), rtol=RTOL)
    np.testing.assert_allclose(len(x["index"]) * gradient, want["grad_features_per_anchor"], rtol=1e-7, atol=1e-11)


@pytest.mark.usefixtures("double")
def test_only_kept_negatives_push() -> None:
    """d loss / d q = Σ_j (d loss / d s_j) k_j, with the recorded gradient along the similarities."""
    x, want = load("contrastive-behaviour", "c0")

    def total(features: Any) -> Any:
        return o.hard_info_nce(
            features, x["bank"], temperature=x["temperature"], top_k=int(x["top_k"]), positive_index=x["index"]
        )

    gradient = len(x["index"]) * jax.jit(jax.grad(total))(x["features"])
    np.testing.assert_allclose(gradient, want["grad_similarity_hard_topk"] @ np.asarray(x["bank"]), rtol=1e-7)


def test_the_memory_moves_and_only_where_the_batch_was() -> None:
    memory = o.feature_bank(6, 4, contrast=functools.partial(o.info_nce, temperature=0.3), momentum=0.5)
    state = memory.init(jax.random.key(0))
    np.testing.assert_allclose(np.linalg.norm(state.features, axis=1), 1, rtol=1e-6)
    rows = o.l2_normalize(jax.random.normal(jax.random.key(1), (2, 4)))
    index = jnp.asarray([4, 1], jnp.int32)
    loss, aux, after = jax.jit(memory.apply)(state, rows, index=index)
    assert 0 < float(aux["probability"]) < 1
    np.testing.assert_allclose(loss, o.info_nce(rows, state.features, temperature=0.3, positive_index=index), rtol=1e-6)
    moved = np.asarray(state.features[index] + rows) / 2
    np.testing.assert_allclose(after.features[index], moved / np.linalg.norm(moved, axis=1, keepdims=True), rtol=1e-5)
    still = np.asarray([0, 2, 3, 5])
    np.testing.assert_array_equal(after.features[still], state.features[still])


def test_an_id_outside_the_memory_makes_the_loss_nan_under_jit() -> None:
    memory = o.feature_bank(6, 4, contrast=o.simple_contrastive)
    state, rows = memory.init(jax.random.key(0)), jnp.eye(4)[:2]
    loss, _, after = jax.jit(memory.apply)(state, rows, index=jnp.asarray([4, 6], jnp.int32))
    assert np.isnan(loss)
    np.testing.assert_array_equal(after.features[5], state.features[5])


ROWS = jnp.eye(4)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: o.hard_info_nce(ROWS, ROWS, temperature=0.1), "one of top_k and alpha"),
        (lambda: o.hard_info_nce(ROWS, ROWS, temperature=0.1, top_k=1, alpha=0.5), "one of top_k and alpha"),
        (lambda: o.hard_info_nce(ROWS, ROWS, temperature=0.1, top_k=4), r"1\.\.3"),
        (lambda: o.hard_info_nce(ROWS, ROWS, temperature=0.1, alpha=0.0), r"\(0, 1\]"),
        (lambda: o.hard_info_nce(ROWS, ROWS, temperature=0.0, top_k=1), "above zero"),
        (lambda: o.hard_info_nce(ROWS[:1], ROWS[:1], temperature=0.1, top_k=1), "no negatives"),
        (lambda: o.hard_simple_contrastive(2 * ROWS, ROWS, top_k=1), "unit length"),
        (lambda: o.hard_simple_contrastive(ROWS, ROWS, top_k=1, reduction="sum"), "reduction"),
        (lambda: o.simple_contrastive(ROWS, ROWS, negative_weight=-1.0), "negative"),
        (lambda: o.simple_contrastive(ROWS[:2], ROWS), "one shape"),
        (lambda: o.simple_contrastive(ROWS[:1], ROWS, positive_index=np.asarray([4])), "there are 4 keys"),
        (lambda: o.info_nce(ROWS[:1], ROWS, temperature=0.1, positive_index=np.asarray([0.0])), "one integer"),
        (
            lambda: o.info_nce(ROWS, ROWS, temperature=0.1, positive_index=np.arange(4), symmetric=True),
            "without symmetric",
        ),
        (lambda: o.feature_bank(1, 4, contrast=o.simple_contrastive), "num_examples >= 2"),
        (lambda: o.feature_bank(8, 4, contrast=o.simple_contrastive, momentum=1.5), "momentum"),
        (lambda: o.clip_alignment_uniformity(ROWS, ROWS, logit_scale=100.0, alignment=-1.0), "alignment"),
        (lambda: o.clip_alignment_uniformity(ROWS[:1], ROWS[:1], logit_scale=100.0), "single row"),
        (lambda: o.cyclic(ROWS, ROWS, in_modal=-0.1), "in_modal"),
    ],
)
def test_bad_input_is_refused_in_words(call: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        call()


def test_a_share_of_the_negatives_as_published() -> None:
    assert number_kept(None, 0.0819, 50_000) == 4095
    assert number_kept(None, 1e-6, 10) == 1
    assert number_kept(None, 1.0, 7) == number_kept(7, None, 7) == 7
