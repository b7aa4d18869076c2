"""Nothing that is read can run code: no pickle, no eval, no unsafe YAML anywhere in the tree; pickles are refused."""

import ast
import os
import pathlib
import pickle

import numpy as np
import pytest

from mixcon import config as configs
from mixcon.data.graph_files import Folder, Packed
from mixcon.errors import InputError
from mixcon.evals.artifacts import load_artifact, save_artifact
from mixcon.models.pretrained import load_clip
from mixcon.train.evaluate import evaluate

ROOT = pathlib.Path(__file__).parent.parent
ROOMS = ("mixcon", "experiments", "configs", "benchmarks", "scripts")
FILES = [path for room in ROOMS for path in sorted((ROOT / room).rglob("*.py"))]
MODULES = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "marshal", "shelve", "jsonpickle"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
METHODS = {"read_pickle", "to_pickle", "unsafe_load", "full_load"}


def keyword(call: ast.Call, name: str) -> ast.expr | None:
    return next((k.value for k in call.keywords if k.arg == name), None)


def is_constant(node: ast.expr | None, value: object) -> bool:
    return isinstance(node, ast.Constant) and node.value is value


def complaints(source: str) -> list[str]:
    """What in a file could run what it reads."""
    found = []
    for node in ast.walk(ast.parse(source)):
        names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
        names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        found += [f"import {name}" for name in names if name.partition(".")[0] in MODULES]
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        owner, _, method = called.rpartition(".")
        if called in BUILTINS or method in METHODS or called in ("os.system", "os.popen"):
            found.append(called)
        pickles = keyword(node, "allow_pickle")
        if pickles is not None and not is_constant(pickles, False):
            found.append(f"{called} with allow_pickle")
        if owner == "torch" and method == "load" and not is_constant(keyword(node, "weights_only"), True):
            found.append("torch.load without weights_only")
        if owner == "yaml" and method in ("load", "load_all") and "Safe" not in ast.unparse(node):
            found.append("yaml.load without SafeLoader")
        shell = keyword(node, "shell")
        if shell is not None and not is_constant(shell, False):
            found.append(f"{called} through a shell")
    return found


UNSAFE = """
import pickle
from cloudpickle import loads
import os, dill as d
eval('1')
exec(x)
__import__('os')
np.load(p, allow_pickle=True)
np.load(p, allow_pickle=flag)
torch.load(p)
torch.load(p, weights_only=False)
yaml.load(f)
yaml.load(f, Loader=yaml.Loader)
pd.read_pickle(p)
import joblib
subprocess.run(c, shell=True)
os.system(c)
"""
SAFE = """
np.load(p)
np.load(p, allow_pickle=False)
yaml.safe_load(f)
yaml.load(f, Loader=yaml.SafeLoader)
model.eval()
re.compile(x)
jitted.compile()
ast.literal_eval(x)
"""


@pytest.mark.parametrize("source", UNSAFE.strip().splitlines())
def test_the_search_finds_what_it_looks_for(source):
    assert complaints(source)


def test_the_search_lets_pass_what_is_safe():
    assert complaints(SAFE) == []


def test_no_file_of_the_tree_can_run_what_it_reads():
    assert len(FILES) > 100
    found = {str(path.relative_to(ROOT)): wrong for path in FILES if (wrong := complaints(path.read_text()))}
    assert not found


class Exploit:
    """What a pickle can do when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.fixture
def sprung(tmp_path):
    """The folder that a pickle makes when somebody opens it."""
    yield tmp_path / "sprung"
    assert not (tmp_path / "sprung").exists(), "a pickle was opened"


def objects(sprung):
    """An array that numpy can only store as a pickle."""
    array = np.empty(1, object)
    array[0] = Exploit(sprung)
    return array


def test_object_arrays_are_refused_by_every_loader(tmp_path, sprung):
    np.save(tmp_path / "labels.npy", objects(sprung), allow_pickle=True)
    np.save(tmp_path / "vectors.npz", objects(sprung), allow_pickle=True)
    (tmp_path / "vectors.npz.npy").rename(tmp_path / "vectors.npz")  # one that is in truth a .npy
    np.savez(tmp_path / "graph.npz", kind=objects(sprung), row=objects(sprung), col=objects(sprung), shape=np.ones(2))
    with pytest.raises(InputError, match="cannot be read"):
        Folder(tmp_path).array("labels")
    with pytest.raises(InputError, match="cannot be read"):
        Folder(tmp_path).edges("graph")
    with pytest.raises(InputError, match="cannot be read"):
        Folder(tmp_path).sparse("vectors")
    with pytest.raises(InputError, match="cannot be read"):
        Folder(tmp_path).vectors("vectors.npz")
    with pytest.raises(InputError, match="cannot be read"):
        Packed(tmp_path / "graph.npz")
    with pytest.raises(InputError, match="not a readable artifact"):
        load_artifact(tmp_path / "graph.npz")


def test_objects_are_not_written_either(tmp_path, sprung):
    with pytest.raises(InputError, match="only pickle could store"):
        save_artifact(tmp_path, 1, "x", {"kind": "x", "a": objects(sprung)})


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin", "model.pt"])
def test_pickled_weights_are_refused(tmp_path, sprung, name):
    (tmp_path / name).write_bytes(pickle.dumps({"weight": Exploit(sprung)}))
    with pytest.raises(InputError, match="not a readable safetensors file"):
        load_clip(tmp_path / name)


UNNAMEABLE = """
numpy.load torch.load joblib.load jax.numpy.load pickle.loads os.mkdir builtins.exec runpy.run_path subprocess.run
mixcon.config.load mixcon.config.resolve mixcon.cli.main mixcon.config.importlib.import_module
mixcon.data.records.io.open
mixcon.data.sources.Path __main__.x pytest.main ..os.mkdir os os.
"""


@pytest.mark.parametrize("name", [*UNNAMEABLE.split(), "", None, 3])
def test_what_could_run_code_cannot_be_named_in_a_config(name):
    with pytest.raises(InputError):
        configs.resolve(name)


def test_a_run_that_comes_from_outside_cannot_name_it_either(tmp_path, sprung):
    piece = {"name": "os.mkdir", "path": str(sprung)}
    config = configs.load("configs/clip.py:small")
    config.unlock()
    for key in ("objective", "gradient", "optimizer"):
        config[key] = piece
    config.data.train = piece
    config.augment = (piece,)
    (tmp_path / "config.json").write_text(configs.to_json(config))
    with pytest.raises(InputError, match="cannot be named in a config"):
        evaluate(tmp_path)
    config.experiment = "os"
    (tmp_path / "config.json").write_text(configs.to_json(config))
    with pytest.raises(InputError, match="cannot be named in a config"):
        evaluate(tmp_path)


def test_ones_own_modules_can_be_named(tmp_path, monkeypatch):
    (tmp_path / "my_pieces.py").write_text("def double(x): return 2 * x")
    monkeypatch.syspath_prepend(tmp_path)
    assert configs.call({"name": "my_pieces.double"}, 4) == 8
