"""Overrides as people, and others, may type them: one sentence, in bounded time; nothing is run."""

import sys
import time

import hypothesis.strategies as st
import pytest
from hypothesis import given, settings
from tiny import OVERRIDES

from mixcon import cli
from mixcon import config as configs
from mixcon.errors import InputError

BASE = configs.read("configs/clip.py:small")
KEYS = [*dict(configs.flatten(BASE)), *BASE]

PYTHON = """\
__import__('os').mkdir('{trap}')
(lambda: __import__('os').mkdir('{trap}'))()
open('{trap}', 'w')
{{**__import__('os').mkdir('{trap}')}}
f"{{__import__('os').mkdir('{trap}')}}"
[x for x in ().__class__.__mro__]
$(mkdir {trap})
`mkdir {trap}`
!!python/object/apply:os.mkdir ['{trap}']
@{trap}
1 if 1 else 2
print""".splitlines()
WORDS = (
    "1 -1 0 1e400 nan inf true None [1,2 (1,2) {'a':1} {'name':'sgd'} {'name':None} b'a' ... {1:2} () = 0x10 1_0 # é"
)
LONG = ["(" * 300, "[" * 2000 + "]" * 2000, "{" * 100, "'" * 7, "9" * 5000, "a" * 10_000, "-" * 500 + "1"]
VALUES = [*WORDS.split(), *LONG, "", " ", "\n", "\0", "\ud800"]
WHERE = "[0] [99] ['a'] [-1] [ ] .. .x .name [0].scale () +1 [1:2]"
PATHS = ["", "", "", *WHERE.split(), "[" * 200]
ODD = "--config --config=x -- --- --noconfig.ema --help -x x --flagfile=/etc/passwd --config.help --undefok=x"


@st.composite
def override(draw, trap="nowhere"):
    """`--config.key=value`, more or less."""
    if draw(st.integers(0, 19)) == 0:
        return draw(st.sampled_from(ODD.split()))
    key = draw(st.one_of(st.sampled_from(KEYS), st.sampled_from(KEYS), st.text("abc._[]0'x()= \n", max_size=12)))
    python = st.sampled_from(PYTHON).map(lambda value: value.format(trap=trap))
    value = draw(st.one_of(st.sampled_from(VALUES), python, st.text()))
    dot, equals = draw(st.sampled_from(["."] * 4 + ["", "[", ".."])), draw(st.sampled_from(["=", "=", "=", "", "=="]))
    return f"--config{dot}{key}{draw(st.sampled_from(PATHS))}{equals}{value}"


def check(flags):
    start, refusal = time.monotonic(), ""
    try:
        configs.override(BASE, flags)
    except InputError as error:
        refusal = str(error)
    assert len(refusal) < 30_000
    assert time.monotonic() - start < 5


def run(tmp_path, count):
    trap = tmp_path / "trap"

    @settings(max_examples=count, deadline=None)
    @given(st.lists(override(trap), min_size=1, max_size=3))
    def fuzz(flags):
        check(flags)
        assert not trap.exists(), "it was run"

    fuzz()


def test_overrides(tmp_path):
    run(tmp_path, 60)


@pytest.mark.slow
def test_many_overrides(tmp_path):
    run(tmp_path, 400)


@pytest.mark.parametrize("value", PYTHON)
def test_values_that_look_like_python_are_text_or_refused(tmp_path, value):
    trap = tmp_path / "trap"
    for key in ("experiment", "steps", "augment", "optimizer", "optimizer.name", "augment[0].scale", "optimizer.new"):
        check([f"--config.{key}={value.format(trap=trap)}"])
    assert not trap.exists()


# Values of the right type that nothing can be built from.
UNBUILDABLE = """\
experiment=os
experiment=..
experiment=mixcon.train.loop
gradient.name=os.system
objective.name=.
objective.name=builtins.exec
augment=((1,2),(3,4))
augment=({},)
optimizer.overrides=('a',)
optimizer.overrides=(('(', {}),)
optimizer.overrides=None
sharding.rules=('a',)
sharding.rules=None
batch_size=0
batch_size=-1
steps=0
seed=-1
mesh.data=0
ema=nan
model.image.width=0
data.train.split=""".splitlines()


@pytest.mark.parametrize("wrong", UNBUILDABLE)
def test_the_command_says_in_one_line_what_is_wrong(capsys, tmp_path, wrong):
    flags = [*OVERRIDES, f"--config.{wrong}"]
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "--config", "configs/clip.py:small", f"--workdir={tmp_path}", "--no-progress", *flags])
    said = capsys.readouterr().err
    assert left.value.code == 2, said
    assert said.startswith("mixcon: error: ")
    assert said.count("\n") == 1
    assert "Traceback" not in said


@pytest.mark.parametrize(
    "flag", ["--config." + "a" * 3000, "--config.steps=" + "(" * 5000, "--config.x=\udcff", "--\0"]
)
def test_the_command_says_so_of_strange_arguments_too(capsys, tmp_path, flag):
    with pytest.raises(SystemExit) as left:
        cli.main(["train", "--config", "configs/clip.py:small", f"--workdir={tmp_path}", flag])
    assert left.value.code == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert said.encode(sys.stderr.encoding, "backslashreplace")
