"""A whole training step of the demo's CLIP at batch 1,024 beside the same model in PyTorch, in turn on the same cores.

    python -m benchmarks.clip_step            # writes benchmarks/results/clip_step.json and clip_step.md

Both sides normalise the same emoji, run the same towers from the same weights, take the loss of CLIP (the peer as
open_clip does on one device: both matrices of logits, whole), clip the gradient and step AdamW. Before anything is
timed both must give the same loss and the same norm of the gradient. Neither side augments. Seconds are those of a
clock, which others on the machine lengthen, and the processor's. A step touches gigabytes of fresh memory: it is
measured with the pages that Linux hands out by itself, and with huge ones.
"""

from __future__ import annotations

import argparse
import json
import os
import pathlib
import statistics
import subprocess
import sys
import tempfile
import time
from typing import Any

import jax
import numpy as np
import torch
import torch.nn.functional as F

from mixcon import config as configs
from mixcon.models import flatten
from mixcon.train import loop
from mixcon.train import mesh as meshes

CLOCKS = {"clock": time.perf_counter, "processor": time.process_time}
PAGES = {"small": "", "huge": "glibc.malloc.hugetlb=1"}  # of memory, for both sides; docs/training.md
RESULTS = pathlib.Path(__file__).parent / "results"
CONFIG = "configs/clip.py:small"


class Block(torch.nn.Module):
    """Pre-norm attention and MLP."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = (torch.nn.LayerNorm(width, eps=1e-6) for _ in range(2))
        self.qkv, self.out = torch.nn.Linear(width, 3 * width), torch.nn.Linear(width, width)
        self.fc1, self.fc2 = torch.nn.Linear(width, 4 * width), torch.nn.Linear(4 * width, width)

    def forward(self, x: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).view(batch, tokens, self.heads, 3, width // self.heads)
        q, k, v = (qkv[:, :, :, i].transpose(1, 2) for i in range(3))
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        x = x + self.out(mixed.transpose(1, 2).reshape(batch, tokens, width))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class Peer(torch.nn.Module):
    """Two towers that average their tokens."""

    def __init__(self, model: Any, vocab_size: int):
        super().__init__()
        image, text = model.image, model.text
        side = image.image_size // image.patch
        self.patch_embed = torch.nn.Conv2d(3, image.width, image.patch, image.patch)
        self.image_pos = torch.nn.Parameter(torch.zeros(side * side, image.width))
        self.token_embed = torch.nn.Embedding(vocab_size, text.width)
        self.text_pos = torch.nn.Parameter(torch.zeros(text.context_length, text.width))
        self.image_blocks = torch.nn.ModuleList(Block(image.width, image.heads) for _ in range(image.depth))
        self.text_blocks = torch.nn.ModuleList(Block(text.width, text.heads) for _ in range(text.depth))
        self.image_norm, self.text_norm = (torch.nn.LayerNorm(each.width, eps=1e-6) for each in (image, text))
        self.image_projection = torch.nn.Linear(image.width, model.embed_dim, bias=False)
        self.text_projection = torch.nn.Linear(text.width, model.embed_dim, bias=False)
        self.log_scale = torch.nn.Parameter(torch.zeros(()))

    def forward(self, images: torch.Tensor, ids: torch.Tensor, pad_id: int) -> torch.Tensor:
        x = self.patch_embed(images).flatten(2).transpose(1, 2) + self.image_pos
        for layer in self.image_blocks:
            x = layer(x, None)
        image = F.normalize(self.image_projection(self.image_norm(x).mean(1)), dim=1)
        real = ids != pad_id
        x = self.token_embed(ids) + self.text_pos
        for block in self.text_blocks:
            x = block(x, real[:, None, None, :])
        weight = real.to(x.dtype)[:, :, None]
        text = F.normalize(self.text_projection((self.text_norm(x) * weight).sum(1) / weight.sum(1)), dim=1)
        scale, own = self.log_scale.exp(), torch.arange(len(image))
        return (F.cross_entropy(scale * image @ text.T, own) + F.cross_entropy(scale * text @ image.T, own)) / 2

    def load(self, params: Any) -> None:
        """The weights of the other side."""
        given = {name: torch.tensor(np.asarray(value)) for name, value in flatten(params).items()}

        def put(module: Any, path: str, *, norm: bool = False) -> None:
            weight = given.pop(f"{path}/scale") if norm else given.pop(f"{path}/kernel").T
            module.weight.copy_(weight)
            if module.bias is not None:
                module.bias.copy_(given.pop(f"{path}/bias"))

        with torch.no_grad():
            for tower, blocks in (("image", self.image_blocks), ("text", self.text_blocks)):
                getattr(self, f"{tower}_pos").copy_(given.pop(f"{tower}/pos_embed"))
                put(getattr(self, f"{tower}_norm"), f"{tower}/norm", norm=True)
                put(getattr(self, f"{tower}_projection"), f"{tower}_projection")
                for i, block in enumerate(blocks):
                    for name in ("norm1", "norm2"):
                        put(getattr(block, name), f"{tower}/blocks/{i}/{name}", norm=True)
                    for name, path in (("qkv", "attn"), ("out", "attn"), ("fc1", "mlp"), ("fc2", "mlp")):
                        put(getattr(block, name), f"{tower}/blocks/{i}/{path}/{name}")
            patch = self.patch_embed.kernel_size[0]
            kernel = given.pop("image/patch_embed/kernel").view(patch, patch, 3, -1)
            self.patch_embed.weight.copy_(kernel.permute(3, 2, 0, 1))
            assert self.patch_embed.bias is not None
            self.patch_embed.bias.copy_(given.pop("image/patch_embed/bias"))
            self.token_embed.weight.copy_(given.pop("text/token_embed"))
            self.log_scale.copy_(given.pop("logit_scale/log"))
        assert not given, f"not loaded: {list(given)}"


def measure(batch_size: int, rounds: int, block: int) -> dict[str, Any]:
    """Median seconds of a step on both sides, and how many times as long the peer takes, by either clock."""
    config = configs.load(
        CONFIG, [f"--config.batch_size={batch_size}", "--config.augment=()", "--config.keyword_share=0.0"]
    )
    mesh = meshes.make_mesh(data=1)
    with jax.set_mesh(mesh), tempfile.TemporaryDirectory() as folder:
        experiment = loop.build(config, pathlib.Path(folder))
        _, places = loop.state_layout(experiment, config, mesh)
        state = loop.first_state(experiment, config, places)
        host = loop.device_part(next(experiment.batches()))
        batch = meshes.put_batch(host, meshes.batch_sharding(mesh))
        step = jax.jit(experiment.step, donate_argnums=0).lower(state, batch).compile()
        vocab = state.params["text"]["token_embed"].shape[0]
        assert experiment.model is not None
        pad_id = experiment.model["text"]["pad_id"]
        peer = Peer(config.model, vocab)
        peer.load(jax.device_get(state.params))
        decays = [p for p in peer.parameters() if p.ndim > 1 and p is not peer.token_embed.weight]
        others = [p for p in peer.parameters() if not any(p is each for each in decays)]
        rule = config.optimizer
        adamw = torch.optim.AdamW(
            [{"params": decays, "weight_decay": rule.weight_decay}, {"params": others, "weight_decay": 0.0}],
            lr=config.schedule.peak, betas=(rule.b1, rule.b2), eps=rule.eps,
        )  # fmt: skip
        images, ids = torch.tensor(host["image"]), torch.tensor(host["tokens"]).long()
        said: dict[str, tuple[float, float]] = {}
        box = [state]

        def ours() -> None:
            box[0], metrics = step(box[0], batch)
            said["mixcon"] = (float(metrics["loss"]), float(metrics["grad_norm"]))

        def theirs() -> None:
            adamw.zero_grad()
            x = (images.permute(0, 3, 1, 2).float() / 255 - 0.5) / 0.5
            loss = peer(x, ids, pad_id)
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(peer.parameters(), rule.clip_norm)
            adamw.step()
            said["PyTorch"] = (float(loss.detach()), float(norm))

        seconds = {clock: {"mixcon": [], "PyTorch": []} for clock in CLOCKS}
        for turn in range(rounds + 1):  # the first warms both up, and is compared
            for name, one in (("mixcon", ours), ("PyTorch", theirs)):
                if turn:
                    one()  # not timed: the pages that it touches belonged to the other
                before = {clock: now() for clock, now in CLOCKS.items()}
                for _ in range(block if turn else 1):
                    one()
                if turn:
                    for clock, now in CLOCKS.items():
                        seconds[clock][name].append((now() - before[clock]) / block)
            if not turn:
                np.testing.assert_allclose(said["mixcon"], said["PyTorch"], rtol=1e-4)
    ratios = {
        clock: [theirs / ours for ours, theirs in zip(*taken.values(), strict=True)] for clock, taken in seconds.items()
    }
    return {
        "seconds": {
            clock: {name: statistics.median(values) for name, values in taken.items()}
            for clock, taken in seconds.items()
        },
        "speedup": {clock: statistics.median(values) for clock, values in ratios.items()},
        "range": {clock: (min(values), max(values)) for clock, values in ratios.items()},
    }


def main() -> None:
    """Measure with either size of pages, each in a process of its own, and write."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--batch", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--block", type=int, default=1)
    parser.add_argument("--as-it-is", action="store_true", help="this process alone: a line of JSON")
    arguments = parser.parse_args()
    if arguments.as_it_is:
        print(json.dumps(measure(arguments.batch, arguments.rounds, arguments.block)))
        return
    command = [sys.executable, "-m", "benchmarks.clip_step", "--as-it-is"]
    command += [f"--{name}={getattr(arguments, name)}" for name in ("batch", "rounds", "block")]
    found = {"batch": arguments.batch, "threads": torch.get_num_threads(), "rounds": arguments.rounds}
    found |= {"jax": jax.__version__, "torch": torch.__version__, "pages": {}}
    for pages, tunables in PAGES.items():
        said = subprocess.run(
            command, env=os.environ | {"GLIBC_TUNABLES": tunables}, check=True, stdout=subprocess.PIPE
        )
        found["pages"][pages] = json.loads(said.stdout)
    lines = ["| pages | | clock, s | processor, s | examples a second |", "|---|---|---|---|---|"]
    says = []
    for pages, side in found["pages"].items():
        for name, wall in side["seconds"]["clock"].items():
            processor = side["seconds"]["processor"][name]
            lines.append(f"| {pages} | {name} | {wall:.2f} | {processor:.2f} | {arguments.batch / wall:.0f} |")
        low, high = side["range"]["clock"]
        says.append(f"{side['speedup']['clock']:.2f} times ({low:.2f}-{high:.2f}) with {pages} pages")
    lines += [
        "",
        f"A step of the demo's CLIP, batch {arguments.batch}, {found['threads']} threads, {arguments.rounds} rounds in "
        f"turn, jax {jax.__version__}, torch {torch.__version__}: mixcon does {', '.join(says)} the examples a second, "
        "by the clock.",
    ]
    table = "\n".join(lines) + "\n"
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "clip_step.json").write_text(json.dumps(found, indent=1) + "\n")
    (RESULTS / "clip_step.md").write_text(table)
    print(table)


if __name__ == "__main__":
    main()
