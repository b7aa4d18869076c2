"""A picture of every policy: two images, the mix, the mask, and the weights, so that people can see what each does."""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from mixcon.errors import InputError
from mixcon.mixers.align import alignmix
from mixcon.mixers.augmix import augmix
from mixcon.mixers.compose import mixup_or_cutmix
from mixcon.mixers.frequency import fmix
from mixcon.mixers.linear import mixup, simplex_mixup
from mixcon.mixers.plan import Plan, mix, sources
from mixcon.mixers.puzzle import puzzlemix
from mixcon.mixers.region import cutmix, gridmix, resizemix, smoothmix
from mixcon.mixers.relabel import transmix_relabel
from mixcon.mixers.saliency import fine_grained_saliency, normalise_saliency, spectral_residual_saliency
from mixcon.mixers.salient import attentivemix, guidedmixup, saliencymix, snapmix
from mixcon.mixers.token import maskmix, mergemix, smmix, token_cutmix, tokenmix
from mixcon.mixers.warp import Blocks, Transport

DRAWS = 4  # of which the one is shown that shows most


def photographs(size: int = 224) -> np.ndarray:
    """Real pictures without a download: square crops of scikit-learn's two sample photographs.

    Args:
        size: side of each picture, pixels, at most 427.
    Returns:
        uint8 [4, size, size, 3].
    Raises:
        InputError: size outside 16…427.
    Example:
        >>> photographs(64).shape
        (4, 64, 64, 3)
    """
    if not 16 <= size <= 427:
        raise InputError(f"size must lie in 16…427; got {size}.")
    from PIL import Image
    from sklearn.datasets import load_sample_images

    china, flower = load_sample_images().images
    crops = [china[:, :427], flower[:, 120:547], china[:, 213:], flower[60:360, 200:500]]
    return np.stack([np.asarray(Image.fromarray(c).resize((size, size), Image.Resampling.BICUBIC)) for c in crops])


def _policies(x: Array, image: Array) -> dict[str, Callable[[Array, Array], Plan]]:
    """Every image policy, given what it needs to see: saliency stands in for attention and class activations."""
    batch, size = x.shape[0], x.shape[1]
    share = normalise_saliency(spectral_residual_saliency(x), blur=7)
    side = next(s for s in (14, 16, 8, 7, 4, 2, 1) if size % s == 0)
    cells = share.reshape(batch, side, size // side, side, size // side).sum(axis=(2, 4))
    attention = cells.reshape(batch, -1)
    blocks = tuple(b for b in (2, 4, 8, 16) if size % b == 0)[:3]
    grid = max(g for g in range(1, 17) if size % g == 0)
    fine = fine_grained_saliency(image).astype(jnp.float32)
    policies: dict[str, Callable[[Array, Array], Plan]] = {
        "mixup": mixup,
        "simplex_mixup": simplex_mixup,
        "cutmix": cutmix,
        "smoothmix": smoothmix,
        "gridmix": gridmix,
        "resizemix": resizemix,
        "fmix": fmix,
        "fmix, intended spectrum": partial(fmix, spectrum="intended"),
        "saliencymix": partial(saliencymix, saliency=fine),
        "attentivemix": partial(attentivemix, features=cells),
        "guidedmixup": partial(guidedmixup, saliency=share, blur=0),
        "snapmix": partial(snapmix, percent=share, labels=jnp.arange(batch)),
        "puzzlemix": partial(puzzlemix, saliency=share, block_nums=blocks[-1:], t_size=-1),
        "token_cutmix": partial(token_cutmix, patch=size // grid),
        "tokenmix": partial(tokenmix, side=side, minimum=side),
        "transmix": lambda key, x: transmix_relabel(cutmix(key, x), attention),
        "mergemix": partial(mergemix, attention=attention),
        "maskmix": partial(maskmix, cell=max(size // 4, 1)),
        "mixup_or_cutmix": mixup_or_cutmix,
    }
    if batch % 2 == 0:
        policies["smmix"] = partial(smmix, attention=attention)
    if size % 16 == 0:
        policies["alignmix"] = partial(_align_blocks, grid=16)
    return policies


def _align_blocks(key: Array, x: Array, grid: int) -> Plan:
    """AlignMix shown on pixels: blocks stand for features, and each goes where the transport sends most of it."""
    size = x.shape[1] // grid
    cells = x.reshape(x.shape[0], grid, size, grid, size, -1).mean(axis=(2, 4)) * 3.0
    plan = alignmix(key, cells, align="partner")
    move = plan.warp[1] if plan.warp is not None else None
    assert isinstance(move, Transport)
    return plan._replace(warp=(None, Blocks(move.matrix.argmax(axis=2).astype(jnp.int32))))


def draw_sheet(
    images: np.ndarray | None = None,
    *,
    seed: int = 0,
    only: Sequence[str] | None = None,
    progress: Callable[[str], None] | None = None,
) -> Any:
    """Draw every image policy on real pictures: both sources, the mix, the own share of each pixel, the weights.

    Args:
        images: uint8 [B, H, H, 3], B ≥ 3; crops of two photographs if None.
        seed: of the draws.
        only: names to draw; all if None.
        progress: called with each policy's name before it is drawn.
    Returns:
        A matplotlib figure.
    Raises:
        InputError: images of another form; unknown names.
    Example:
        >>> figure = draw_sheet(photographs(32), only=["mixup", "cutmix"])
        >>> len(figure.axes)
        8
    """
    images = photographs() if images is None else np.asarray(images)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3 or len(images) < 3:
        raise InputError(f"images must be uint8 [B, H, H, 3] with B ≥ 3; got {images.dtype}{list(images.shape)}.")
    if images.shape[1] != images.shape[2] or images.shape[1] < 32 or images.shape[1] % 2:
        raise InputError(
            f"images must be square, even and at least 32 pixels; got {images.shape[1]}×{images.shape[2]}."
        )
    from matplotlib.figure import Figure

    image = jnp.asarray(images)
    x = image.astype(jnp.float32) / 255.0
    policies = _policies(x, image)
    unknown = set(only or ()) - {*policies, "augmix"}
    if unknown:
        raise InputError(f"unknown policies {sorted(unknown)}; choose from {', '.join([*policies, 'augmix'])}.")
    names = [n for n in [*policies, "augmix"] if only is None or n in only]
    columns, wide = 4, 1 + (len(names) > 4) + (len(names) > 10)
    rows = -(-len(names) // wide)
    tall = 2.05 * rows
    figure = Figure(figsize=(1.75 * columns * wide + 0.4 * (wide - 1), tall), dpi=100)
    outer = figure.add_gridspec(
        rows, wide, wspace=0.08, hspace=0.28, left=0.01, right=0.99, top=1 - 0.3 / tall, bottom=0.25 / tall
    )
    for i, name in enumerate(names):
        if progress is not None:
            progress(name)
        panels, title = _panels(name, policies, jax.random.fold_in(jax.random.key(seed), i), x, image)
        inner = outer[i % rows, i // rows].subgridspec(1, columns, wspace=0.03)
        for j, (panel, caption) in enumerate(panels):
            axis = figure.add_subplot(inner[0, j])
            axis.imshow(np.clip(panel, 0, 1), interpolation="nearest", cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
            axis.set_xlabel(caption, fontsize=6.5, labelpad=1.5)
            if j == 0:
                axis.set_title(title, fontsize=8.5, loc="left", pad=3, fontweight="bold")
    return figure


def _panels(
    name: str, policies: dict[str, Callable[[Array, Array], Plan]], key: Array, x: Array, image: Array
) -> tuple[list[tuple[np.ndarray, str]], str]:
    if name == "augmix":
        mixed = np.asarray(jax.jit(augmix)(key, image))
        change = np.abs(mixed[0] - np.asarray(x[0])).mean(axis=-1)
        shown = [
            (np.asarray(x[0]), "image"),
            (np.asarray(x[0]), "itself"),
            (mixed[0], "mix"),
            (change * 3, "change ×3"),
        ]
        return shown, "augmix  (label unchanged)"
    draw = jax.jit(lambda key, x: (p := policies[name](key, x), mix(p, x)))
    looks = [(_most_mixed(found[0], x), found) for found in (draw(k, x) for k in jax.random.split(key, DRAWS))]
    (_, i), (plan, mixed) = min(looks, key=lambda look: look[0])
    index, weight = (np.asarray(v)[i] for v in sources(plan))
    own, other = int(index[0]), int(index[1])
    if plan.mask is None:
        mask = np.full(x.shape[1:3], weight[0])
    else:
        mask = np.asarray(jnp.broadcast_to(plan.mask, (x.shape[0], *x.shape[1:3], plan.mask.shape[-1])))[i, :, :, 0]
    weights = " · ".join(f"{w:.2f}" for w in weight)
    panels = [(np.asarray(x[own]), "own"), (np.asarray(x[other]), "partner"), (np.asarray(mixed[i]), "mix"),
              (mask, f"own share, mean {mask.mean():.2f}")]  # fmt: skip
    return panels, f"{name}   weights {weights}"


def _most_mixed(plan: Plan, x: Array) -> tuple[float, int]:
    """Where there is most to see, with how little that is: unlike pictures, and the first weight nearest to a half."""
    index, weight = (np.asarray(v) for v in sources(plan))
    unlike = np.abs(np.asarray(x)[index[:, 0]] - np.asarray(x)[index[:, 1]]).mean(axis=(1, 2, 3))
    little = np.abs(weight[:, 0] - 0.5) - np.minimum(unlike, 0.2)
    return float(little.min()), int(little.argmin())


def save_sheet(path: str | Path, images: np.ndarray | None = None, *, seed: int = 0, **options: Any) -> Path:
    """Write `draw_sheet` as a PNG.

    Args:
        path: where to; its folder must exist.
        images, seed: as `draw_sheet`; options: its `only` and `progress`.
    Returns:
        The path.
    Raises:
        InputError: the folder does not exist; as `draw_sheet`.
    Example:
        >>> save_sheet("sheet.png", only=["cutmix"])  # doctest: +SKIP
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise InputError(f"the folder of {path} does not exist; make it first.")
    draw_sheet(images, seed=seed, **options).savefig(path, format="png")
    return path
