"""A virtual environment with the libraries that the benchmarks compare with; the package needs none.

torch, numpy and scikit-learn are installed with their dependencies; the others without theirs, because only single
modules of them are used (`torch_peers` and `mixer_peers` load those alone). torchvision must not come near an
environment where other libraries look for it: with a torch built for CPUs only its import fails.
"""

import hashlib
import os
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

PLAIN = ["torch==2.13.0", "numpy>=2", "scikit-learn>=1.5", "tqdm", "pillow>=10", "PyMaxflow==1.3.2"]
ALONE = [
    "open_clip_torch==3.3.0",
    "pytorch-metric-learning==2.9.0",
    "lightly==1.6.0",
    "timm==1.0.31",
    "torchvision==0.28.0",
    "gco-wrapper==3.0.9",
]


def default_folder() -> Path:
    """Beside other caches, named after what it holds."""
    name = hashlib.sha256(" ".join([sys.version, *PLAIN, *ALONE]).encode()).hexdigest()[:12]
    root = os.environ.get("XDG_CACHE_HOME") or tempfile.gettempdir()
    return Path(root) / f"mixcon-peers-{name}"


def ensure(folder: Path | None = None) -> Path:
    """The environment's Python, made when it is not there (half a gigabyte; minutes the first time)."""
    folder = default_folder() if folder is None else folder
    python, done = folder / "bin" / "python", folder / "complete"
    if not done.exists():
        print(f"making the peers' environment in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True, clear=True)
        install = [python, "-m", "pip", "install", "--quiet"]
        subprocess.run([*install, *PLAIN], check=True)
        subprocess.run([*install, "--no-deps", *ALONE], check=True)
        done.touch()
    return python
