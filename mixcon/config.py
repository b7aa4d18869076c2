"""Configs: loading with command-line overrides, and pieces referred to by dotted name.

A config is a Python file with `get_config(arg)` returning an `ml_collections.ConfigDict` of numbers
and names. A piece (an optimiser, a tower, a sampler) is a sub-dict whose `name` is a dotted path to
a function and whose other entries are its keyword arguments; `call` imports, checks and calls it.
"""

from __future__ import annotations

import functools
import importlib
import importlib.util
import inspect
import json
import math
import pathlib
import re
import shlex
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import ml_collections
from absl import flags
from ml_collections import config_flags

from mixcon.errors import InputError, nearest

LIBRARIES = ("mixcon", "optax")  # installed, and nothing in them runs what it is told
CODE = pathlib.Path(__file__).resolve().parent.parent  # of a source tree; holds configs/ and experiments/


def load(path: str, overrides: Sequence[str] = ()) -> ml_collections.ConfigDict:
    """Load `configs/clip.py:small` and apply `--config.key=value` overrides.

    A key that the file does not have is refused, unless it is an argument of a piece: those are checked
    against the signature of the function that the piece names.

    Args:
      path: file, optionally followed by `:argument`, which is handed to its `get_config`.
      overrides: arguments in the ml_collections flag convention, e.g. `["--config.batch_size=128"]`.

    Returns:
      The locked config.

    Raises:
      InputError: missing or faulty file, unknown key (the nearest ones are named), value of another type.

    Example:
      >>> config = load("configs/clip.py:small", ["--config.batch_size=128"])
    """
    return override(read(path), overrides, path=path)


def override(config: ml_collections.ConfigDict, overrides: Sequence[str], *, path: str = "the config") -> Any:
    """A locked copy of a config with `--config.key=value` overrides applied; see `load`."""
    config = config.copy_and_resolve_references().unlock()
    for each in overrides:
        refuse_unknown_key(path, config, each)
    values = flags.FlagValues()
    argv = ["mixcon", *overrides]
    try:
        config_flags.DEFINE_config_dict(
            "config", config, flag_values=values, lock_config=False, accept_new_attributes=True, sys_argv=argv
        )
        rest = values(argv)
    except flags.UnrecognizedFlagError as error:
        raise InputError(f"unknown argument --{error.flagname}; overrides are written --config.key=value") from error
    except (flags.Error, LookupError, TypeError, ValueError, SyntaxError, RecursionError, MemoryError) as error:
        reason = " ".join(str(error).split())[:600]  # a value is read as a literal: nested too deeply, it is refused
        raise InputError(f"config override refused: {reason}") from error
    if rest[1:]:
        raise InputError(f"unexpected argument {rest[1]!r}; overrides are written --config.key=value")
    return config.lock()


def typed(flag: str) -> str:
    """`--config.key=value` as one types it in a shell.

    Example:
      >>> typed("--config.optimizer={'name': 'sgd'}")
      '--config.optimizer="{\'name\': \'sgd\'}"'
    """
    key, equals, value = flag.partition("=")
    if re.fullmatch(r"[\w@%+:,./=-]*", value):
        return flag
    return f'{key}{equals}"{value}"' if '"' not in value and "$" not in value else shlex.quote(flag)


def read(path: str) -> ml_collections.ConfigDict:
    """What `get_config` of `file[:argument]` returns."""
    name, colon, argument = path.rpartition(":") if ":" in pathlib.Path(path).name else (path, "", "")
    module = read_module(name)
    try:
        return module.get_config(*([argument] if colon else []))
    except Exception as error:  # it is a program: whatever it raises is about the file, or says why it refuses
        raise InputError(f"config {path} cannot be read: {type(error).__name__}: {error}") from error


def variant(file: str, name: str, forms: Mapping[str, Callable[[], Any]]) -> Any:
    """What a config file makes of its argument; one that it does not know is refused with those that it does.

    Example:
      >>> variant("clip.py", "b32", {"b32": lambda: published(size="B/32"), "small": small})
    """
    if name not in forms:
        raise InputError(f"configs/{file} has no variant {name!r}; it has {', '.join(forms)}")
    return forms[name]()


def read_module(name: str) -> ModuleType:
    """The config file as a module, run anew."""
    file = pathlib.Path(name)
    if not file.is_file():
        folders = [f for f in (file.parent, pathlib.Path("configs"), CODE / "configs") if any(f.glob("*.py"))]
        there = [str(p) for p in folders[0].glob("*.py")] if folders else []
        raise InputError(f"config file {name!r} does not exist; {nearest(name, there)}")
    make_importable(file.resolve().parent.parent)
    spec = importlib.util.spec_from_file_location(f"config_{file.stem}", file)
    if spec is None or spec.loader is None:
        raise InputError(f"config file {name!r} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise InputError(f"config {name} cannot be read: {type(error).__name__}: {error}") from error
    return module


def make_importable(*roots: pathlib.Path) -> None:
    """Let `experiments.<name>` and `configs.<name>` be found in folders that hold these rooms."""
    for root in (CODE, pathlib.Path.cwd(), *roots):
        if (root / "experiments").is_dir() and str(root) not in sys.path:
            sys.path.insert(0, str(root))


def refuse_unknown_key(path: str, config: ml_collections.ConfigDict, override: str) -> None:
    """Name the neighbours of a key that neither the file has nor a piece may take."""
    written = re.match(r"--?(?:no)?config\.([^=\[]+)", override)
    if written is None:
        return
    key, known = written[1], dict(flatten(config))
    *holders, last = key.split(".")
    inside: Any = config
    for holder in holders:
        inside = inside.get(holder, {}) if isinstance(inside, ml_collections.ConfigDict) else {}
    is_here = isinstance(inside, ml_collections.ConfigDict) and last in inside  # with a value, or an empty dict
    if is_here or f"{'.'.join(holders)}.name" in known:
        return
    raise InputError(f"unknown config key {key!r} in {path}: {nearest(key, known)}")


def flatten(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves of a nested config as `(dotted key, value)`."""
    for key, value in config.items():
        if isinstance(value, Mapping | ml_collections.ConfigDict):
            yield from flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Keys whose values differ, as `{key: (ours, theirs)}`; a missing key counts as None."""
    left, right = ({k: json.loads(json.dumps(v)) for k, v in flatten(side)} for side in (ours, theirs))
    keys = sorted(left.keys() | right.keys())
    return {k: (left.get(k), right.get(k)) for k in keys if left.get(k) != right.get(k)}


def resolve(name: str) -> Any:
    """Import what a dotted name such as `mixcon.objectives.clip` refers to.

    A config may come with a run of somebody else's, so not every function that is installed can be named: those of
    mixcon and optax can, and those of source trees, such as `experiments/`.
    """
    if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", name):
        raise InputError(f"{name!r} is not a dotted name, such as mixcon.objectives.clip")
    module, _, attribute = name.rpartition(".")
    if module in (__name__, "mixcon.cli") or not may_be_named(name.partition(".")[0]):
        raise InputError(
            f"{name!r} cannot be named in a config: of what is installed, only mixcon and optax can. "
            "Use it in a module of your own, beside the config, and name that"
        )
    try:
        owner = importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise InputError(f"{name!r} cannot be imported: {error}") from error
    if hasattr(owner, attribute):
        found = getattr(owner, attribute)
        if (getattr(found, "__module__", None) or "").partition(".")[0] in sys.stdlib_module_names:
            raise InputError(
                f"{name!r} is {found.__module__}.{attribute} of Python's library, and no piece of a config"
            )
        return found
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        names = [n for n in dir(owner) if not n.startswith("_")]
        raise InputError(f"{module} has no {attribute!r}; {nearest(attribute, names)}") from error


def may_be_named(package: str) -> bool:
    """Whether a config may name what is in a package: one's own source may be, an installed library may not."""
    if package in LIBRARIES:
        return True
    try:
        spec = importlib.util.find_spec(package)
    except ValueError:  # the running program
        return False
    if spec is None:
        return True  # the import will say that it is missing
    places = [spec.origin or "", *(spec.submodule_search_locations or [])]
    installed = any({"site-packages", "dist-packages"} & set(pathlib.Path(place).parts) for place in places)
    return not installed and package not in sys.stdlib_module_names


def check_arguments(function: Callable, name: str, arguments: Iterable[str]) -> None:
    """Refuse keyword arguments that `function` does not take, naming the nearest that it does."""
    parameters = inspect.signature(function).parameters
    if any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
        return
    unknown = [argument for argument in arguments if argument not in parameters]
    if len(unknown) == 1:
        raise InputError(f"{name} takes no argument {unknown[0]!r}; {nearest(unknown[0], parameters)}")
    if unknown:  # those of another function: the whole piece has to be replaced
        raise InputError(
            f"{name} takes no arguments {', '.join(unknown)}; valid names: {', '.join(sorted(parameters))}. "
            """A piece is replaced with all its arguments by a dict: --config.key="{'name': ..., 'argument': ...}"."""
        )


def partial(piece: Mapping[str, Any]) -> Callable:
    """The function that `piece["name"]` refers to, with the piece's other entries as keywords.

    Example:
      >>> blur = partial({"name": "mixcon.data.augment.gaussian_blur", "p": 0.5})
    """
    if not isinstance(piece, Mapping | ml_collections.ConfigDict) or "name" not in piece:
        raise InputError(f"{piece!r} is no piece of a config: that is a dict with a name and the function's arguments")
    function = resolve(piece["name"])
    if not callable(function):
        raise InputError(f"{piece['name']!r} is no function")
    configured = {key: plain(value) for key, value in piece.items() if key != "name"}
    check_arguments(function, piece["name"], configured)
    return functools.partial(function, **configured)


def call(piece: Mapping[str, Any], *args: Any) -> Any:
    """`partial(piece)`, called.

    Example:
      >>> call({"name": "optax.adamw", "learning_rate": 1e-3})
    """
    function = partial(piece)
    try:
        inspect.signature(function).bind(*args)
    except TypeError as error:
        raise InputError(f"{piece['name']}: {error}") from error
    return function(*args)


def plain(value: Any) -> Any:
    """ConfigDict → dict, recursively; anything else unchanged."""
    if isinstance(value, ml_collections.ConfigDict):
        return {key: plain(inner) for key, inner in value.items()}
    return value


def check_minimum(config: ml_collections.ConfigDict, minimum: Mapping[str, int]) -> None:
    """Refuse values below `{dotted key: least value}`."""
    values = dict(flatten(config))
    for key, least in minimum.items():
        if values[key] < least:
            raise InputError(f"{key}={values[key]} must be at least {least}")


def bounds(key: str, given: Any) -> tuple[float, float]:
    """The least and the greatest value of a pair in a config, for what is not negative; () is 0 and infinity."""
    if isinstance(given, Sequence) and not given:
        return 0.0, math.inf
    if isinstance(given, Sequence) and len(given) == 2 and all(isinstance(each, (int, float)) for each in given):
        low, high = map(float, given)
        if 0 <= low <= high and high > 0:
            return low, high
    raise InputError(f"{key}={given!r} must be two numbers, the least value and the greatest, or () for none")


def check_pairs(key: str, pairs: Any, second: type | tuple[type, ...]) -> None:
    """Refuse what is not a sequence of (regex, `second`) pairs, and a regex that is none."""
    shaped = isinstance(pairs, Sequence) and all(
        isinstance(p, Sequence) and len(p) == 2 and isinstance(p[0], str) and isinstance(p[1], second) for p in pairs
    )
    if not shaped:
        raise InputError(f"{key}={pairs!r} must be pairs of a regex and what holds for the parameters that it finds")
    for regex, _ in pairs:
        try:
            re.compile(regex)
        except re.error as error:
            raise InputError(f"{key}: {regex!r} is no regex ({error})") from error


def to_json(config: Mapping[str, Any]) -> str:
    """The resolved text of a config: sorted, one leaf a line."""
    return json.dumps(plain(config), indent=2, sort_keys=True)


def from_json(text: str) -> ml_collections.ConfigDict:
    """Inverse of `to_json` up to tuples, which come back as tuples."""

    def restore(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: restore(inner) for key, inner in value.items()}
        return tuple(restore(inner) for inner in value) if isinstance(value, list) else value

    try:
        found = restore(json.loads(text))
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    config = ml_collections.ConfigDict(found)
    config.lock()
    return config
