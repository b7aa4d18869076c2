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
        (["--other=1"], "refused|unexpected"),
    ],
)
def test_mistakes_are_refused(path, overrides, message):
    with pytest.raises(InputError, match=message):
        configs.load(path, overrides)


def test_a_missing_file_is_refused_with_its_neighbours(path):
    with pytest.raises(InputError, match=r"toyy.py' does not exist; did you mean .*toy.py"):
        configs.load(path.replace("toy", "toyy"))


def test_call_checks_arguments_against_the_signature():
    with pytest.raises(InputError, match="takes no argument 'weight_deca'; did you mean weight_decay"):
        configs.call({"name": "optax.adamw", "learning_rate": 0.1, "weight_deca": 0.1})
    with pytest.raises(InputError, match="optax has no 'adamv'"):
        configs.call({"name": "optax.adamv"})
    with pytest.raises(InputError, match="cannot be imported"):
        configs.resolve("nowhere.at.all")


def test_json_round_trip():
    config = ml_collections.ConfigDict({"a": {"b": (1, ("x", {"c": None}))}, "d": 1e-3})
    assert configs.from_json(configs.to_json(config)).to_dict() == config.to_dict()


def test_differences_name_the_keys():
    found = configs.differences({"a": {"b": 1, "c": (1, 2)}}, {"a": {"b": 2, "c": [1, 2]}, "d": 3})
    assert found == {"a.b": (1, 2), "d": (None, 3)}
