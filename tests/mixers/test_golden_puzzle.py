"""PuzzleMix against the published code: costs, labels, energies, transport and pictures."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon.mixers.graphcut import convex_label_mincut, label_energy
from mixcon.mixers.plan import mix
from mixcon.mixers.puzzle import block_share, greedy_transport, puzzle_costs, puzzle_plan

MEAN, STD = np.float32([0.4914, 0.4822, 0.4465]), np.float32([0.2023, 0.1994, 0.2010])  # of the recorded run


@pytest.mark.parametrize("index", range(3))
def test_puzzlemix(golden, nhwc, close, index):
    case = golden("openmixup-puzzlemix")[index]
    inp, out = case.inp, case.out
    x, saliency, partner = jnp.asarray(nhwc(inp["x"])), jnp.asarray(inp["saliency"]), jnp.asarray(inp["perm"])
    image = x * STD.reshape(1, 1, 1, 3) + MEAN.reshape(1, 1, 1, 3)
    blocks, weight = int(inp["block_num"]), jnp.float32(inp["alpha_lam"])
    costs = jax.jit(puzzle_costs, static_argnames="blocks")(image, saliency, partner, weight, blocks=blocks)
    expected = (out["unary_int"], out["weight_v_int"], out["weight_h_int"])
    for ours, theirs in zip(costs, expected, strict=True):
        assert np.abs(np.asarray(ours) - theirs).max() <= 1  # float order before the truncation
    given = tuple(jnp.asarray(c) for c in expected)
    labels = jax.jit(convex_label_mincut)(*given)
    energy, theirs = label_energy(labels, *given), label_energy(jnp.asarray(out["labels"]), *given)
    assert (np.asarray(energy) <= np.asarray(theirs)).all()
    close(theirs, out["energy"], 1e-3)
    np.testing.assert_array_equal(labels, out["labels"])
    options = {"blocks": blocks, "transport": bool(inp["transport"]), "t_size": int(inp["t_size"])}
    plan = jax.jit(lambda *a: puzzle_plan(*a, **options))(image, saliency, partner, weight)
    close(plan.weight, out["lam"])
    close(mix(plan, x), nhwc(out["x_mixed"]))


def test_transport_targets(golden):
    for case in golden("openmixup-puzzlemix")[:2]:
        saliency, partner = jnp.asarray(case.inp["saliency"]), jnp.asarray(case.inp["perm"])
        mask = 1 - jnp.asarray(case.out["labels"], jnp.float32) / 2
        places = saliency.shape[1] // int(case.inp["t_size"])
        mask = jnp.repeat(jnp.repeat(mask, places // mask.shape[1], 1), places // mask.shape[1], 2)
        share = block_share(saliency, places)
        for name, s, m in (("a", share, mask), ("b", share[partner], 1 - mask)):
            ours = np.asarray(greedy_transport(s, m > 0))
            used = case.out[f"plan_{name}_rowsum"] > 0
            np.testing.assert_array_equal(ours >= 0, used)
            np.testing.assert_array_equal(ours[used], case.out[f"plan_{name}_target"][used])


def test_mincut_is_exact_against_enumeration():
    rng = np.random.default_rng(0)
    unary = rng.integers(0, 40, (6, 2, 3, 1)) * np.arange(3) + rng.integers(-60, 60, (6, 2, 3, 1)) * np.arange(3)
    unary[..., 1] += rng.integers(-20, 20, (6, 2, 3))  # not convex any more: the order of the bits must be enforced
    vertical, horizontal = rng.integers(0, 30, (6, 1, 3)), rng.integers(0, 30, (6, 2, 2))
    args = tuple(jnp.asarray(a, jnp.int32) for a in (unary, vertical, horizontal))
    energy = np.asarray(label_energy(convex_label_mincut(*args), *args))
    for n in range(6):
        best = min(
            sum(unary[n, r, c, lab[r * 3 + c]] for r in range(2) for c in range(3))
            + sum(vertical[n, 0, c] * (lab[c] - lab[3 + c]) ** 2 for c in range(3)) / 4
            + sum(horizontal[n, r, c] * (lab[r * 3 + c] - lab[r * 3 + c + 1]) ** 2 for r in range(2) for c in range(2))
            / 4
            for lab in itertools.product(range(3), repeat=6)
        )
        assert energy[n] == best
