"""Configs: the flag convention, and mistakes refused in words."""

import ml_collections
import pytest

from mixcon import config as configs
from mixcon.errors import InputError

SOURCE = """
import ml_collections

def get_config(arg="big"):
    config = ml_collections.ConfigDict()
    config.batch_size = 32 if arg == "small" else 32768
    config.learning_rate = 1e-3
    config.name = arg
    config.model = ml_collections.ConfigDict({"width": 64, "layers": (1, 2)})
    return config
"""


PIECES = """
import ml_collections

def get_config(arg="adamw"):
    if arg != "adamw":
        raise ValueError(f"there is no variant {arg!r}")
    config = ml_collections.ConfigDict()
    config.optimizer = dict(name=arg, b1=0.9, weight_decay=0.1)
    config.augment = (dict(name="crop", scale=0.5),)
    return config
"""


@pytest.fixture
def path(tmp_path):
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "toy.py").write_text(SOURCE)
    return str(folder / "toy.py")


def test_argument_and_overrides(path):
    config = configs.load(f"{path}:small", ["--config.batch_size=48", "--config.model.width", "7"])
    assert (config.batch_size, config.model.width, config.name) == (48, 7, "small")
    assert configs.load(path).batch_size == 32768
    assert config.is_locked


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["--config.batchsize=1"], "unknown config key 'batchsize'.*did you mean batch_size"),
        (["--config.model.widht=1"], "unknown config key 'model.widht'.*did you mean model.width"),
        (["--config.batch_size=many"], "config override refused.*batch_size"),
        (["stray"], "unexpected argument 'stray'"),
        (["--other=1"], "unknown argument --other; overrides are written"),
        (["--config.batch-size=1"], "unknown config key 'batch-size'.*did you mean batch_size"),
    ],
)
def test_mistakes_are_refused(path, overrides, message):
    with pytest.raises(InputError, match=message):
        configs.load(path, overrides)


def test_a_piece_takes_new_arguments_and_can_be_replaced(tmp_path):
    (tmp_path / "toy.py").write_text(PIECES)
    more = ["--config.optimizer.clip_norm=1.5", "--config.augment[0].scale=0.1"]
    added = configs.load(str(tmp_path / "toy.py"), more)
    assert added.optimizer.to_dict() == {"name": "adamw", "b1": 0.9, "weight_decay": 0.1, "clip_norm": 1.5}
    assert added.augment[0]["scale"] == 0.1
    whole = ["--config.optimizer={'name': 'sgd', 'momentum': 0.9}", "--config.optimizer.nesterov=true"]
    replaced = configs.load(str(tmp_path / "toy.py"), whole)
    assert replaced.optimizer.to_dict() == {"name": "sgd", "momentum": 0.9, "nesterov": True}
    with pytest.raises(InputError, match="refused"):
        configs.load(str(tmp_path / "toy.py"), ["--config.augment[3].scale=0.1"])


def test_what_a_config_file_says_is_passed_on_without_a_traceback(tmp_path):
    (tmp_path / "toy.py").write_text(PIECES)
    with pytest.raises(InputError, match=r"toy.py:adam cannot be read: ValueError: there is no variant 'adam'$"):
        configs.load(f"{tmp_path / 'toy.py'}:adam")
    (tmp_path / "broken.py").write_text("import nowhere")
    with pytest.raises(InputError, match="cannot be read: ModuleNotFoundError"):
        configs.load(str(tmp_path / "broken.py"))


def test_a_missing_file_is_refused_with_its_neighbours(path):
    with pytest.raises(InputError, match=r"toyy.py' does not exist; did you mean .*toy.py"):
        configs.load(path.replace("toy", "toyy"))


def test_call_checks_arguments_against_the_signature():
    with pytest.raises(InputError, match="takes no argument 'weight_deca'; did you mean weight_decay"):
        configs.call({"name": "optax.adamw", "learning_rate": 0.1, "weight_deca": 0.1})
    with pytest.raises(InputError, match="optax has no 'adamv'"):
        configs.call({"name": "optax.adamv"})
    with pytest.raises(InputError, match=r"optax\.adamw: missing a required argument: 'learning_rate'"):
        configs.call({"name": "optax.adamw"})
    with pytest.raises(InputError, match=r"takes no arguments eps, b1; .* replaced with all its arguments"):
        configs.call({"name": "optax.sgd", "learning_rate": 0.1, "eps": 1e-8, "b1": 0.9})
    with pytest.raises(InputError, match="cannot be imported"):
        configs.resolve("nowhere.at.all")


def test_json_round_trip():
    config = ml_collections.ConfigDict({"a": {"b": (1, ("x", {"c": None}))}, "d": 1e-3})
    assert configs.from_json(configs.to_json(config)).to_dict() == config.to_dict()


def test_values_below_their_least_are_refused():
    config = ml_collections.ConfigDict({"checkpoint": {"every": 0}})
    configs.check_minimum(config, {"checkpoint.every": 0})
    with pytest.raises(InputError, match=r"checkpoint\.every=0 must be at least 1"):
        configs.check_minimum(config, {"checkpoint.every": 1})


def test_differences_name_the_keys():
    found = configs.differences({"a": {"b": 1, "c": (1, 2)}}, {"a": {"b": 2, "c": [1, 2]}, "d": 3})
    assert found == {"a.b": (1, 2), "d": (None, 3)}


def test_a_variant_that_a_config_does_not_have_is_refused_with_those_that_it_has():
    for name, known in (("one_to_k", "ccrk6, ccrk10"), ("cwcl", "image_text, speech_text"), ("m3col", "n24news")):
        with pytest.raises(InputError, match=f"no variant 'big'; it has.*{known}"):
            configs.load(f"configs/{name}.py:big")


def test_bounds_are_two_numbers_or_none():
    assert configs.bounds("range", (1, 100.0)) == (1.0, 100.0)
    assert configs.bounds("range", ()) == (0.0, float("inf"))
    for wrong in (5, "ab", (1,), (2, 1), (-1, 1), (0, 0), (1, "2"), (float("nan"), 1)):
        with pytest.raises(InputError, match=r"range=.*two numbers"):
            configs.bounds("range", wrong)
