"""Analysis of mixes, and the picture of every policy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from mixcon import mixers as m
from mixcon.errors import InputError
from mixcon.mixers.analysis import label_quality, manifold_intrusion, utilization
from mixcon.mixers.sheet import draw_sheet, photographs, save_sheet

KEY = jax.random.key(0)


def test_utilization(golden, close):
    case = golden("metrix")[3]
    query, train, mixed = (jnp.asarray(case.inp[k], jnp.float32) for k in ("query", "train", "mixed"))
    close(utilization(query, train), case.out["utilization_clean"])
    close(utilization(query, train, mixed), case.out["utilization_with_mixed"])


def test_midpoints_of_a_ring_intrude_on_the_cluster_inside():
    angles = jnp.linspace(0, 2 * jnp.pi, 32, endpoint=False)
    ring = 2 * jnp.stack([jnp.cos(angles), jnp.sin(angles)], axis=1)
    real = jnp.concatenate([ring, 0.05 * jax.random.normal(KEY, (8, 2))])
    labels = jnp.concatenate([jnp.zeros(32, int), jnp.ones(8, int)])
    opposite = m.make_plan((jnp.arange(32) + 16) % 32, 0.5)
    found = manifold_intrusion(opposite, m.mix(opposite, ring), real, labels[:32], labels, radius=0.3)
    assert float(found.rate) == 1.0
    assert (np.asarray(found.nearest) >= 32).all()
    near = m.make_plan((jnp.arange(32) + 1) % 32, 0.5)
    assert float(manifold_intrusion(near, m.mix(near, ring), real, labels[:32], labels, radius=0.3).rate) == 0.0


def test_label_quality_prefers_the_label_that_counts_what_is_visible():
    ink = jax.random.uniform(KEY, (8, 16, 16)) ** 6
    plan = m.cutmix(KEY, ink[..., None], per="example", alpha=2.0)
    area = label_quality(plan, ink)
    own = (np.asarray(plan.mask)[..., 0] * ink).sum((1, 2))
    other = ((1 - np.asarray(plan.mask)[..., 0]) * np.asarray(ink)[plan.partner]).sum((1, 2))
    np.testing.assert_allclose(area.visible, own / (own + other), rtol=1e-5)
    exact = label_quality(plan._replace(weight=area.visible), ink)
    assert float(exact.error) < 1e-6 < float(area.error)
    np.testing.assert_allclose(exact.correlation, 1.0, rtol=1e-4)


def test_sheet_draws_real_pictures(tmp_path):
    names = ["mixup", "cutmix", "resizemix", "guidedmixup"]
    drawn = []
    path = save_sheet(tmp_path / "sheet.png", photographs(32), only=names, progress=drawn.append)
    assert drawn == names
    assert path.read_bytes()[:4] == b"\x89PNG"
    assert path.stat().st_size > 20_000


@pytest.mark.slow
def test_sheet_draws_every_policy():
    figure = draw_sheet(photographs(64))
    assert len(figure.axes) == 4 * 22


def test_sheet_refuses_what_it_cannot_draw(tmp_path):
    with pytest.raises(InputError, match="uint8"):
        draw_sheet(np.zeros((4, 32, 32, 3)))
    with pytest.raises(InputError, match="square"):
        draw_sheet(np.zeros((4, 32, 48, 3), np.uint8))
    with pytest.raises(InputError, match="unknown"):
        draw_sheet(photographs(32), only=["cutmax"])
    with pytest.raises(InputError, match="folder"):
        save_sheet(tmp_path / "none" / "sheet.png")
