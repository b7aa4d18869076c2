"""No full-size step holds a matrix of pairs: every array of the program that XLA makes for a pod is looked at.

    .venv-tpu/bin/python -m benchmarks.pair_buffers            # needs the extra tpu-plan; one to five minutes a config

Each chip is given a prime number p of examples. An array whose size is a multiple of p² then holds pairs of examples,
whatever its shape became, and nothing else does. A share of the logits, p rows of all p · chips columns, would have
p² · chips elements; the ring's tile has p². Asserts that no array comes near the former; writes JSON and a table.
"""

import argparse
import json
import os
import pathlib
import tempfile

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from mixcon import config as configs
from mixcon.plan import chips, compile
from mixcon.plan.program import read_program
from mixcon.reproduce.document import aligned

RESULTS = pathlib.Path(__file__).parent / "results"
CONFIGS = {  # prime number of examples of a chip: near the published batch, and too many for keys to be gathered
    "clip:b32": 131,
    "siglip:b16": 131,
    "align:b3_medium": 131,
    "contrastive_gap:coco128": 521,
    "isogclr:cc3m": 131,
    "geodesic_mixup:m3mix_flickr": 131,
    "m3col:finetune_flickr": 131,
    "cwcl:image_text": 131,
    "one_to_k:ccrk6": 131,
    "contrastive_behaviour:imagenet100": 131,
    "vlp_baselines:cc12m_byolip": 131,
    "vlp_baselines:cc12m_swalip": 131,
}


def measured(name: str, topology: chips.Topology) -> dict[str, float | str]:
    """Sizes in elements, of one config's step."""
    count = len(topology.devices)
    prime = CONFIGS[name]
    file, variant = name.split(":")
    config = configs.load(f"configs/{file}.py:{variant}", [f"--config.batch_size={prime * count}"])
    with tempfile.TemporaryDirectory() as folder:
        step = compile.trace(config, topology, pathlib.Path(folder))
    _, text = compile.compiled_size(step.lowered)
    assert text is not None, f"{name} does not fit {topology.name}"
    arrays = read_program(text).arrays
    pairs = max((size for size in arrays if size % prime**2 == 0), default=0)
    share = prime**2 * count
    assert pairs < share / 4, f"{name}: an array of {pairs:,} elements holds pairs; a chip's logits have {share:,}"
    return {
        "config": name,
        "topology": topology.name,
        "batch": prime * count,
        "pairs": pairs,
        "share": share,
        "largest": max(arrays),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--topology", default="v5e:16x16")
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS)
    parser.add_argument("configs", nargs="*", default=list(CONFIGS))
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    path = arguments.out / "pair_buffers.json"
    rows = {row["config"]: row for row in json.loads(path.read_text())} if path.exists() else {}
    for name in arguments.configs:
        rows[name] = measured(name, chips.topology(arguments.topology))
        path.write_text(json.dumps([*rows.values()], indent=1) + "\n")
        head = ["config", "topology", "batch", "largest array of pairs", "a chip's share of logits", "largest array"]
        body = [
            [r["config"], r["topology"], f"{r['batch']:,}", *(f"{r[k]:,}" for k in ("pairs", "share", "largest"))]
            for r in rows.values()
        ]
        path.with_suffix(".md").write_text(aligned([head, *body]))
    print(path.with_suffix(".md").read_text())


if __name__ == "__main__":
    main()
