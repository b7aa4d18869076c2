"""What every objective keeps: right in value and gradient, on any schedule and mesh, at the edges, in linear memory."""

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec
from objective_cases import CASES, SIZE, Case, Tree, example

from mixcon import objectives
from mixcon.ops import pairs, schedules
from mixcon.ops.streaming import Grid
from mixcon.train.mesh import make_mesh

every_case = pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
engine_case = pytest.mark.parametrize("case", [c for c in CASES if c.engine], ids=lambda case: case.name)

LOOP_SIZE = 8  # the loops are slow
STEP = 1e-6
ROWS, EVERYWHERE = PartitionSpec("data"), PartitionSpec()


@pytest.fixture
def double() -> Iterator[None]:
    with jax.enable_x64(True):
        yield


@contextlib.contextmanager
def small_tiles() -> Iterator[None]:
    """Tiles of 3 × 5, which divide no batch here: several in each direction, the last ones overlapping."""

    def grid(queries: Any, keys: Any, tile_size: Any) -> Grid:
        rows, cols = queries.block.position.shape[0], keys.block.position.shape[0]
        return Grid(rows, cols, min(rows, 3), min(cols, 5))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(schedules, "grid", grid)
        yield


def cast(tree: Tree, dtype: Any) -> Tree:
    return jax.tree.map(
        lambda x: jnp.asarray(x, dtype if np.issubdtype(np.asarray(x).dtype, np.floating) else None), tree
    )


def value_and_grad(case: Case, **placement: Any) -> Any:
    """(features, data, shared) → loss, (feature gradients, shared gradients)."""

    def loss(features: Tree, shared: Tree, data: Tree) -> Any:
        return case.loss(features, data, shared, **placement)

    pair = jax.value_and_grad(loss, argnums=(0, 1))
    return jax.jit(lambda features, data, shared: pair(features, shared, data))


@functools.cache
def float32(name: str) -> Any:
    """The program of one device, compiled once: in small tiles where there is an engine."""
    case = next(c for c in CASES if c.name == name)
    features, data, shared = (cast(tree, jnp.float32) for tree in example(case))
    with small_tiles():
        return value_and_grad(case, impl="tiled" if case.engine else "dense").lower(features, data, shared).compile()


@functools.cache
def truth(name: str) -> tuple[float, Tree, Tree]:
    """Value by the loops, and gradients as their central differences."""
    case = next(c for c in CASES if c.name == name)
    features, data, shared = example(case, LOOP_SIZE)

    def differences(tree: Tree, evaluate: Any) -> Tree:
        out = {}
        for key, x in tree.items():
            x = np.asarray(x)
            out[key] = np.zeros_like(x)
            for index in np.ndindex(x.shape):
                step = np.zeros_like(x)
                step[index] = STEP
                out[key][index] = (evaluate({**tree, key: x + step}) - evaluate({**tree, key: x - step})) / (2 * STEP)
        return out

    return (
        case.reference(features, data, shared, features),
        differences(features, lambda f: case.reference(f, data, shared, features)),
        differences(shared, lambda s: case.reference(features, data, s, features)),
    )


def assert_close(got: Any, want: Any, **tolerance: float) -> None:
    got, want = jax.tree.leaves(got), jax.tree.leaves(want)
    assert len(got) == len(want)
    for a, b in zip(got, want, strict=True):
        np.testing.assert_allclose(np.asarray(a, np.float64), np.asarray(b, np.float64), **tolerance)


def assert_finite(tree: Any) -> None:
    assert all(np.isfinite(np.asarray(x)).all() for x in jax.tree.leaves(tree))


# --- values and gradients --------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("double")
@pytest.mark.parametrize("impl", ["dense", "tiled"])
@every_case
def test_value_and_gradient_are_those_of_plain_loops(case: Case, impl: str) -> None:
    if impl == "tiled" and not case.engine:
        pytest.skip("does not go through the engine")
    features, data, shared = (cast(tree, jnp.float64) for tree in example(case, LOOP_SIZE))
    with small_tiles():
        loss, gradients = value_and_grad(case, impl=impl)(features, data, shared)
    value, of_features, of_shared = truth(case.name)
    assert_close(loss, value, rtol=1e-10)
    assert_close(gradients, (of_features, of_shared), rtol=1e-5, atol=2e-8)


# --- meshes ----------------------------------------------------------------------------------------------------------

MESHES = {"1": (1, 1), "2": (2, 1), "4": (4, 1), "8": (8, 1), "2x4": (2, 4)}


def on_mesh(case: Case, mesh: jax.sharding.Mesh, inside: bool, impl: str) -> Any:
    """Value and gradients with the batch split over `data`, as global arrays under jit or inside `shard_map`."""
    features, data, shared = (cast(tree, jnp.float32) for tree in example(case))
    rows = NamedSharding(mesh, ROWS)
    features, data = jax.device_put((features, data), rows)
    shared = jax.device_put(shared, NamedSharding(mesh, EVERYWHERE))
    if not inside:
        with jax.set_mesh(mesh):
            return value_and_grad(case, impl=impl)(features, data, shared)
    mapped = jax.shard_map(
        value_and_grad(case, impl=impl, axis_name="data"),
        mesh=mesh,
        in_specs=(ROWS, ROWS, EVERYWHERE),
        out_specs=(EVERYWHERE, (ROWS, EVERYWHERE)),
    )
    return jax.jit(mapped)(features, data, shared)


def placements() -> list[Any]:
    """Every case on every mesh, both ways. At once: 8, 2x4 and one of the others, one way each; the rest is slow."""
    out = []
    for number, case in enumerate(CASES):
        at_once = {"8", "2x4", ("1", "2", "4")[number % 3]}
        for turn, mesh in enumerate(MESHES):
            for inside in (False, True):
                impl = "auto" if mesh == "1" else ("ring", "gather", "auto")[(number + turn) % 3]
                slow = mesh not in at_once or (number + turn) % 2 != inside
                name = f"{case.name}-{mesh}-{'shard_map' if inside else 'jit'}-{impl}"
                out.append(pytest.param(case, mesh, inside, impl, marks=[pytest.mark.slow] * slow, id=name))
    return out


@pytest.mark.parametrize(("case", "mesh", "inside", "impl"), placements())
def test_sharded_gradient_is_the_single_device_gradient(case: Case, mesh: str, inside: bool, impl: str) -> None:
    data, model = MESHES[mesh]
    devices = jax.devices()[: data * model]
    got = on_mesh(case, make_mesh(data=data, model=model, devices=devices), inside, impl)
    features, labels, shared = (cast(tree, jnp.float32) for tree in example(case))
    want = float32(case.name)(features, labels, shared)
    assert_close(got, want, rtol=2e-4, atol=2e-5)


# --- the edges -------------------------------------------------------------------------------------------------------


def permuted(features: Tree, data: Tree, order: np.ndarray) -> tuple[Tree, Tree]:
    place = np.argsort(order)
    moved = {
        "index": lambda x: x[order],
        "labels": lambda x: x[order],
        "weight": lambda x: x[order],
        "partner": lambda x: place[x[order]].astype(x.dtype),
        "weights": lambda x: x[order][:, order],
    }
    return {k: x[order] for k, x in features.items()}, {k: moved[k](x) for k, x in data.items()}


@every_case
def test_order_of_the_batch_does_not_matter(case: Case) -> None:
    features, data, shared = example(case)
    order = np.random.default_rng(1).permutation(SIZE)
    function = float32(case.name)
    loss, (of_features, of_shared) = function(*(cast(t, jnp.float32) for t in (features, data, shared)))
    moved = permuted(features, data, order)
    got = function(*(cast(t, jnp.float32) for t in (*moved, shared)))
    want = loss, ({k: np.asarray(g)[order] for k, g in of_features.items()}, of_shared)
    assert_close(got, want, rtol=2e-4, atol=2e-5)


@every_case
def test_temperature_of_a_hundredth(case: Case) -> None:
    features, data, shared = example(case)
    sharp = {"temperature": np.float64(0.01), "scale": np.float64(100.0)}
    if not shared.keys() & sharp.keys():
        pytest.skip("has no temperature")
    shared = {k: sharp.get(k, x) for k, x in shared.items()}
    loss, gradients = float32(case.name)(*(cast(t, jnp.float32) for t in (features, data, shared)))
    assert_finite(gradients)
    assert_close(loss, case.reference(features, data, shared, features), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("edge", ["identical", "zero"])
@every_case
def test_collapsed_rows(case: Case, edge: str) -> None:
    features, data, shared = example(case)
    if edge == "identical":
        row = features["a"][0]
        features = {k: np.broadcast_to(row, x.shape) for k, x in features.items()}
    else:
        features = {k: np.where(np.arange(SIZE)[:, None] % 3 == 0, 0, x) for k, x in features.items()}
    loss, gradients = float32(case.name)(*(cast(t, jnp.float32) for t in (features, data, shared)))
    assert_finite(gradients)
    # Distances are differences of squares in float32: two equal rows lie some 3e-4 apart.
    assert_close(loss, case.reference(features, data, shared, features), rtol=1e-3, atol=1e-3)


# --- padding ---------------------------------------------------------------------------------------------------------

KEPT = 11
MASKED: dict[str, Any] = {
    "clip": lambda a, b, labels, mask, **p: objectives.clip(
        a, b, logit_scale=5.0, logit_bias=0.3, label_smoothing=0.1, mask=mask, **p
    ),
    "siglip": lambda a, b, labels, mask, **p: objectives.siglip(a, b, logit_scale=5.0, logit_bias=-2.0, mask=mask, **p),
    "info_nce": lambda a, b, labels, mask, **p: objectives.info_nce(
        a, b, temperature=0.3, symmetric=True, mask=mask, **p
    ),
    "nt_xent": lambda a, b, labels, mask, **p: objectives.nt_xent(a, b, temperature=0.3, mask=mask, **p),
    "supcon": lambda a, b, labels, mask, **p: objectives.supcon(
        jnp.stack([a, b], 1), labels, temperature=0.3, mask=mask, **p
    ),
    "multi_positive": lambda a, b, labels, mask, **p: objectives.multi_positive(
        a, b, pairs.same_label(labels), temperature=0.3, symmetric=True, query_mask=mask, key_mask=mask, **p
    ),
}


@pytest.mark.parametrize("sharded", [False, True], ids=["whole", "shard_map"])
@pytest.mark.parametrize("name", MASKED)
def test_padded_rows_change_nothing(name: str, sharded: bool) -> None:
    """The last rows are padding: with four devices, all rows of the last one."""
    rng = np.random.default_rng(0)
    a, b = (
        jnp.asarray(x / np.linalg.norm(x, axis=1, keepdims=True), jnp.float32) for x in rng.normal(size=(2, SIZE, 3))
    )
    labels = jnp.asarray(rng.integers(0, 3, SIZE), jnp.int32)
    mask = jnp.arange(SIZE) < KEPT
    pair = jax.value_and_grad(lambda a, b, labels, mask, **p: MASKED[name](a, b, labels, mask, **p), (0, 1))
    if sharded:
        mapped = jax.shard_map(
            functools.partial(pair, axis_name="data"),
            mesh=make_mesh(data=4, devices=jax.devices()[:4]),
            in_specs=(ROWS, ROWS, ROWS, ROWS),
            out_specs=(EVERYWHERE, (ROWS, ROWS)),
        )
        got, gradients = jax.jit(mapped)(a, b, labels, mask)
    else:
        got, gradients = jax.jit(pair)(a, b, labels, mask)
    want, short_gradients = jax.jit(pair)(a[:KEPT], b[:KEPT], labels[:KEPT], None)
    assert_close(got, want, rtol=1e-5)
    assert_close([g[:KEPT] for g in gradients], short_gradients, rtol=1e-4, atol=1e-6)
    assert not any(np.asarray(g[KEPT:]).any() for g in gradients)


# --- memory ----------------------------------------------------------------------------------------------------------

BATCH = 8192


def largest_array(program: str) -> int:
    """Elements of the largest array in the text of a compiled program."""
    shapes = re.findall(r"\b(?:f|bf|s|u|pred)\d*\[([\d,]+)\]", program)
    return max(int(np.prod([int(n) for n in shape.split(",")])) for shape in shapes)


@engine_case
def test_no_batch_by_batch_buffer(case: Case) -> None:
    assert case.name.partition(":")[0] in objectives.LINEAR_MEMORY
    features, data, shared = (jax.eval_shape(lambda t=t: cast(t, jnp.float32)) for t in example(case, BATCH))
    compiled = value_and_grad(case, impl="tiled").lower(features, data, shared).compile()
    assert largest_array(compiled.as_text()) <= BATCH * BATCH / 8
    assert compiled.memory_analysis().temp_size_in_bytes <= BATCH * BATCH


def test_a_dense_program_fails_that_inspection() -> None:
    case = CASES[0]
    features, data, shared = (jax.eval_shape(lambda t=t: cast(t, jnp.float32)) for t in example(case, BATCH))
    compiled = value_and_grad(case, impl="dense").lower(features, data, shared).compile()
    assert largest_array(compiled.as_text()) >= BATCH * BATCH
    assert compiled.memory_analysis().temp_size_in_bytes > BATCH * BATCH


def test_every_objective_is_in_the_battery_and_in_the_table() -> None:
    helpers = {
        "Drawn",
        "FeatureBank",
        "LINEAR_MEMORY",
        "Mixing",
        "Objective",
        "PairMlp",
        "PairedViews",
        "Queue",
        "draw_matches",
        "draw_matches_in_blocks",
        "empty_queue",
        "hard_negative_weights",
        "geodesic_mixup",  # m3mix with shares that it draws
        "l2_normalize",
        "mixed_clip",  # clip beside m3co, with shares that it draws, or soft_clip
        "multimodal_pairs",
        "pair_mlp",
        "positive_language_weights",
        "push",
        "random_queue",
        "sample_lams",
    }
    names = set(objectives.__all__) - helpers
    assert names == {case.name.partition(":")[0] for case in CASES}
    assert names == set(objectives.LINEAR_MEMORY)
