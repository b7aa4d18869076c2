"""Five seeds side by side under `vmap`, beside the same seeds one after the other: seconds of a step, in one run.

    MIXCON_DATA=... python -m benchmarks.seeds            # writes benchmarks/results/seeds.json and seeds.md

One program serves all seeds either way, so compilation is left out.
"""

from __future__ import annotations

import argparse
import json
import pathlib
import statistics
import tempfile
import time
from collections.abc import Callable

import jax
import numpy as np

from mixcon import config as configs
from mixcon.train import loop
from mixcon.train import mesh as meshes
from mixcon.train.seeds import with_seeds

RESULTS = pathlib.Path(__file__).parent / "results"
STEPS = {  # steps in a block
    "configs/cmixup.py:airfoil": 100,
    "configs/cmixup.py:crime": 100,
    "configs/isogclr.py:small": 30,
    "configs/m3col.py:small": 10,
    "configs/mixup_classification.py:small": 3,
}


def stepper(path: str, folder: pathlib.Path, seeds: tuple[int, ...]) -> Callable[[int], float]:
    """`run(steps)` -> processor seconds of a step of all given seeds."""
    config = configs.load(path, [f"--config.seed={seeds[0]}"])
    config = with_seeds(config, seeds) if len(seeds) > 1 else config
    mesh = meshes.make_mesh(data=1)
    with jax.set_mesh(mesh):
        experiment = loop.build(config, folder)
        box = [loop.first_state(experiment, config, loop.state_layout(experiment, config, mesh)[1])]
        batches = experiment.batches()
        step = jax.jit(experiment.step, donate_argnums=0)

    def run(steps: int) -> float:
        with jax.set_mesh(mesh):
            before = time.process_time()
            for _ in range(steps):
                box[0], metrics = step(box[0], jax.device_put(loop.device_part(next(batches))))
            jax.block_until_ready((box, metrics))
            return (time.process_time() - before) / steps

    run(2)  # compiles
    return run


def measure(path: str, steps: int, seeds: int, rounds: int) -> dict[str, float]:
    """Medians over rounds in which both sides take their turn."""
    with tempfile.TemporaryDirectory() as folder:
        alone = stepper(path, pathlib.Path(folder) / "alone", (0,))
        together = stepper(path, pathlib.Path(folder) / "together", tuple(range(seeds)))
        pairs = [(seeds * alone(steps), together(steps)) for _ in range(rounds)]
    one_by_one, side_by_side = (statistics.median(values) for values in zip(*pairs, strict=True))
    return {
        "one_by_one": one_by_one,
        "side_by_side": side_by_side,
        "ratio": statistics.median(b / a for a, b in pairs),
    }


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    found = {path: measure(path, steps, arguments.seeds, arguments.rounds) for path, steps in STEPS.items()}
    lines = [
        f"| {arguments.seeds} seeds, a step of all | one by one, ms | side by side, ms | ratio |",
        "|---|---|---|---|",
    ]
    for path, each in found.items():
        one, both = 1e3 * each["one_by_one"], 1e3 * each["side_by_side"]
        lines.append(f"| `{path}` | {one:.2f} | {both:.2f} | {each['ratio']:.2f} |")
    lines.append(
        f"\nProcessor seconds, medians of {arguments.rounds} rounds, jax {jax.__version__}, numpy {np.__version__}."
    )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "seeds.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "seeds.md").write_text("\n".join(lines) + "\n")
    print("\n".join(lines))


if __name__ == "__main__":
    main()
