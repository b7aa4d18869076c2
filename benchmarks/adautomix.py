"""What a learned mixer costs: one training step of each method against one of plain training.

    python -m benchmarks.adautomix                    # the digits' network of configs/adautomix.py:small
    python -m benchmarks.adautomix --width 32         # a ResNet-18 of that width for 32×32 images, random pixels

All steps are compiled first and then timed in turn, one call each and again, so that a busy machine slows all alike:
the ratios are what counts. FLOPs are those that XLA counts in the compiled step. Writes JSON and a table under
benchmarks/results.
"""

import argparse
import json
import platform
import statistics
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

from mixcon import config as configs
from mixcon.train import loop
from mixcon.train import mesh as meshes

RESULTS = Path(__file__).parent / "results"
CONFIG = str(Path(__file__).parent.parent / "configs" / "adautomix.py")
ROWS = {  # name -> overrides
    "plain": ("method=none", "teacher.use=False"),
    "plain, with a teacher": ("method=none",),
    "CutMix": ("method=cutmix", "teacher.use=False"),
    "AutoMix": ("method=automix",),
    "SAMix": ("method=samix",),
    "AdAutoMix": ("method=adautomix",),
}
PICTURES = (  # what turns the small config into a ResNet-18 at the published shapes
    "model.backbone={'name': 'resnet', 'depth': 18, 'stem': 'cifar', 'channels': 1}",
    "tap=stage3",
    *(f"methods.{method}.generator.scale=4" for method in ("automix", "samix", "adautomix")),
)


class Row:
    """A compiled step and the state that goes through it."""

    def __init__(self, overrides: tuple[str, ...], batch_size: int, side: int):
        config = configs.load(f"{CONFIG}:small", [f"--config.{each}" for each in overrides])
        mesh = meshes.make_mesh(**config.mesh)
        experiment = loop.build(config, Path())
        _, places = loop.state_layout(experiment, config, mesh)
        self.state = loop.first_state(experiment, config, places)
        batch = loop.device_part(next(experiment.batches()))
        repeat = side // batch["image"].shape[1]
        batch["image"] = np.tile(batch["image"], (1, repeat, repeat, 1))
        self.batch = jax.device_put({name: x[:batch_size] for name, x in batch.items()})
        self.step = jax.jit(experiment.step, donate_argnums=0).lower(self.state, self.batch).compile()
        cost: Any = self.step.cost_analysis()
        self.flops = float(cost["flops"])

    def seconds(self) -> float:
        """Wall time of one step."""
        start = time.perf_counter()
        self.state, metrics = self.step(self.state, self.batch)
        jax.block_until_ready(metrics)
        return time.perf_counter() - start


def measure(names: list[str], rounds: int, width: int, batch_size: int) -> dict[str, dict[str, float]]:
    """Milliseconds and FLOPs of a step, and the ratios to plain training: median over rounds of ratios in a round."""
    side = 32 if width else 8
    extra = (*PICTURES, f"model.backbone.width={width}", f"batch_size={batch_size}") if width else ()
    with jax.set_mesh(meshes.make_mesh()):
        rows = {name: Row((*ROWS[name], *extra), batch_size, side) for name in names}
        for row in rows.values():
            row.seconds()
        times = [{name: row.seconds() for name, row in rows.items()} for _ in range(rounds)]
    found = {}
    for name, row in rows.items():
        ratios = sorted(each[name] / each["plain"] for each in times)
        found[name] = {
            "ms": 1e3 * statistics.median(each[name] for each in times),
            "ratio": statistics.median(ratios),
            "ratio_low": ratios[len(ratios) // 4],
            "ratio_high": ratios[-1 - len(ratios) // 4],
            "flops_ratio": row.flops / rows["plain"].flops,
        }
    return found


def table(found: dict[str, dict[str, float]]) -> str:
    """Markdown."""
    lines = ["| step of | ms | × plain (quartiles) | FLOPs × plain |", "|---|---|---|---|"]
    for name, row in found.items():
        spread = f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})"
        lines.append(f"| {name} | {row['ms']:.1f} | {spread} | {row['flops_ratio']:.2f} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--width", type=int, default=0, help="of a ResNet-18; 0: the digits' network")
    parser.add_argument("--batch", type=int, default=100)
    parser.add_argument("--only", nargs="+", choices=list(ROWS), default=list(ROWS), help="rows, beside plain training")
    options = parser.parse_args()
    names = [name for name in ROWS if name in ("plain", *options.only)]
    found = measure(names, options.rounds, options.width, options.batch)
    text = table(found)
    print(text)
    RESULTS.mkdir(exist_ok=True)
    name = f"adautomix-resnet18-{options.width}" if options.width else "adautomix-digits"
    record = {
        "options": vars(options),
        "jax": jax.__version__,
        "device": jax.devices()[0].device_kind,
        "machine": platform.machine(),
        "rows": found,
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    (RESULTS / f"{name}.md").write_text(text + "\n")


if __name__ == "__main__":
    main()
