"""Plans: FLOPs against hand counts, memory against what arrays take, advice that is compiled, errors in words."""

import importlib.util
import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, PartitionSpec

from mixcon import cli
from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.plan import advice, chips, compile, flops, show
from mixcon.plan.activations import saved
from mixcon.train.state import Task, TrainState

TINY = (
    "--config.mesh.model=1",
    "--config.batch_size=32",
    "--config.model.scan_layers=True",
    "--config.tokenizer.vocab_size=400",
    "--config.model.embed_dim=16",
    "--config.model.image.width=32",
    "--config.model.image.depth=2",
    "--config.model.text.width=32",
    "--config.model.text.depth=1",
    "--config.model.text.context_length=12",
)


def counted(function, *arguments):
    return flops.count(jax.make_jaxpr(function)(*arguments))


def test_flops_are_those_counted_by_hand():
    a, b = jnp.ones((3, 5)), jnp.ones((5, 7))
    product = 2 * 3 * 5 * 7
    assert counted(jnp.matmul, a, b) == product
    assert counted(lambda a: jax.lax.fori_loop(0, 4, lambda i, x: (x @ b) @ b.T, a), a) == 4 * 2 * product
    assert counted(lambda a: jax.lax.cond(a[0, 0] > 0, lambda a: (a @ b).sum(), lambda a: a.sum(), a), a) == product
    loss = lambda a, b: jnp.sum((a @ b) ** 2)  # noqa: E731
    assert counted(jax.grad(loss, (0, 1)), a, b) == 3 * product
    kept = counted(jax.grad(lambda a, b: jnp.sum(jnp.sin(jnp.sin(a @ b) @ b.T)), (0, 1)), a, b)
    again = counted(jax.grad(jax.checkpoint(lambda a, b: jnp.sum(jnp.sin(jnp.sin(a @ b) @ b.T))), (0, 1)), a, b)
    assert kept == 6 * product
    assert again > kept  # what is computed twice counts twice
    images, kernel = jnp.ones((2, 8, 8, 3)), jnp.ones((3, 3, 3, 5))
    convolve = lambda x, k: jax.lax.conv_general_dilated(  # noqa: E731
        x, k, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    once = 2 * (2 * 4 * 4 * 5) * (3 * 3 * 3)
    assert counted(convolve, images, kernel) == once
    both = counted(jax.grad(lambda x, k: convolve(x, k).sum(), (0, 1)), images, kernel)
    assert 2 * once <= both <= 3.5 * once  # the backward pass: two convolutions (a linear loss needs no forward pass)


def test_flops_of_a_mapped_function_are_those_of_all_devices():
    mesh = jax.make_mesh((4,), ("data",), (AxisType.Auto,), devices=jax.devices()[:4])
    split = PartitionSpec("data")
    mapped = jax.shard_map(lambda x: x @ x.T, mesh=mesh, in_specs=split, out_specs=split)
    assert counted(mapped, jnp.ones((8, 3))) == 4 * (2 * 2 * 2 * 3)


def test_activations_are_what_the_derivative_needs_and_grow_with_the_batch():
    def encode(params, extra, batch, *, key, train):
        hidden = jnp.sin(batch["x"] @ params["a"])  # the derivative needs cos(x a)
        return jax.checkpoint(lambda h: jnp.sin(jnp.sin(h)) @ params["b"])(hidden), extra  # and what goes in here

    params = {"a": jnp.ones((5, 7)), "b": jnp.ones((7, 3))}
    state = TrainState(jnp.zeros((), jnp.int32), jnp.zeros((), jnp.uint32), params, (), (), (), (), ())
    task = Task(lambda batch, *, key, step: {"x": batch["x"] * 1.0}, encode, lambda *a, **k: None)
    float32, rows = 4, 12
    by_hand = float32 * rows * (5 + 7 + 7)  # x, cos(x a), sin(x a)
    batch = {"x": jax.ShapeDtypeStruct((rows, 5), jnp.float32)}
    assert saved(task, state, batch) == by_hand
    assert saved(task, state, batch, parts=3) == by_hand / 3


@pytest.fixture(scope="module")
def planned():
    return compile.plan(configs.load("configs/clip.py:small", TINY), chips.topology("cpu:4"), name="clip:small")


def test_a_plan_counts_the_bytes_of_a_device(planned):
    assert planned.chips == 4
    assert planned.mesh == {"data": 4, "model": 1}
    assert planned.optimizer == pytest.approx(2 * planned.params, rel=0.01)  # Adam keeps two moments
    row = 64 * 64 * 3 + 4 * 12 * 2 + 4  # the picture, the tokens of name and keywords, the index
    assert planned.batch == pytest.approx(8 * row, rel=0.02)
    assert planned.temporaries > 8 * 64 * 64 * 3 * 4  # pixels as floats, at least
    assert 8 * 64 * 64 * 3 < planned.activations < planned.temporaries
    assert planned.fits
    assert planned.memory is None
    assert "all-reduce" in planned.collectives
    assert planned.collectives["all-reduce"]["bytes"] >= planned.params  # of the gradient
    said = show.text(planned)
    assert "nothing was run" in said
    assert "4 × this CPU" in said


@pytest.mark.slow
def test_fully_sharded_parameters_take_a_share_of_each_device_and_activations_stay_where_they_are():
    wide = [flag.replace("width=32", "width=128") for flag in TINY]
    whole, split = (
        compile.plan(configs.load("configs/clip.py:small", [*wide, *more]), chips.topology("cpu:8"))
        for more in ((), ("--config.sharding.fsdp=True",))
    )
    assert split.params < 0.2 * whole.params
    assert split.optimizer < 0.2 * whole.optimizer
    assert split.temporaries < 1.1 * whole.temporaries  # five times that, were activations split as parameters are


@pytest.mark.slow
def test_advice_is_compiled_until_something_fits(planned):
    config = configs.load("configs/clip.py:small", TINY)
    limit = planned.total - 0.3 * planned.temporaries
    tight = planned._replace(fits=False, memory=limit)
    ((change, tried),) = advice.advise(config, chips.topology("cpu:4"), tight)
    assert change == ("model.remat=True",)
    assert tried.temporaries < planned.temporaries
    assert tried.activations < planned.activations


def test_advice_keeps_what_saves_memory_and_drops_what_does_not(planned, monkeypatch):
    """A compiler for which recomputation saves, split parameters cost, and four parts are enough."""
    limit = planned.params + planned.optimizer
    temporaries = {"model.remat": 0.9, "sharding.fsdp": 30.0, "gradient": 0.5, "batch_size": 0.3}
    compiled = []

    def plan(config, topology, name):
        share = temporaries["model.remat"] if config.model.remat else 1.0
        share *= temporaries["sharding.fsdp"] if config.sharding.fsdp else 1.0
        share /= config.gradient.get("parts", 1)
        needed = share * 4 * limit
        compiled.append(config)
        return planned._replace(temporaries=needed, memory=2.1 * limit, fits=needed < 1.05 * limit)

    monkeypatch.setattr(advice, "plan", plan)
    config = configs.load("configs/clip.py:small", [*TINY, "--config.batch_size=256"])
    first = planned._replace(fits=False, memory=2.1 * limit, temporaries=4 * limit, batch_size=256)
    found = [(change, tried.fits) for change, tried in advice.advise(config, None, first)]
    cached = "gradient={'name':'mixcon.train.gradients.grad_cache','parts':%d}"
    assert found == [
        (("model.remat=True",), False),
        (("model.remat=True", "sharding.fsdp=True"), False),
        (("model.remat=True", cached % 8), True),
    ]
    assert compiled[-1].gradient.parts == 8
    assert not compiled[-1].sharding.fsdp


def test_advice_ends_with_a_smaller_batch(planned, monkeypatch):
    monkeypatch.setattr(advice, "plan", lambda config, topology, name: planned._replace(fits=False, memory=1.0))
    config = configs.load("configs/clip.py:small", [*TINY, "--config.batch_size=256"])
    hopeless = planned._replace(fits=False, memory=1.0, batch_size=256)
    *_, (change, _) = advice.advise(config, None, hopeless)
    assert change == ("batch_size=4",)


def test_stand_ins_are_named_and_have_the_shapes_of_the_data(tmp_path, monkeypatch):
    monkeypatch.setenv("MIXCON_DATA", str(tmp_path))
    from mixcon.plan.stand_in import with_stand_ins

    config, said = with_stand_ins(configs.load("configs/clip.py:b32"), tmp_path)
    assert "training set" in said
    assert "49,408 tokens" in said
    assert configs.call(config.data.train)[0]["image"].shape == (224, 224, 3)
    row = compile.one_row(config, tmp_path)
    assert row["image"].shape == (1, 224, 224, 3)
    assert row["tokens"].shape == (1, 77)
    weights = ["--config.init_from=vit", "--config.init_parts=('image',)", "--config.text_init_from=bert"]
    config, said = with_stand_ins(configs.load("configs/clip.py:b32", weights), tmp_path)
    assert "the weights in vit and bert by random ones" in said
    assert (config.init_from, config.text_init_from) == ("random", "")


@pytest.mark.slow
def test_the_command_sweeps_and_writes(tmp_path, capsys):
    arguments = ["plan", "--config", "configs/clip.py:small", "--topology", "cpu:2", "--batch", "16", "32", *TINY]
    with pytest.raises(SystemExit):
        cli.main(arguments)
    assert "add --sweep" in capsys.readouterr().err
    cli.main([*arguments, "--sweep", "--out", str(tmp_path)])
    said = capsys.readouterr().out
    rows = json.loads((tmp_path / "plan.json").read_text())
    assert [row["batch_size"] for row in rows] == [16, 32]
    assert rows[1]["temporaries"] > rows[0]["temporaries"]
    assert (tmp_path / "plan.md").read_text() in said
    assert (tmp_path / "plan.png").stat().st_size > 5_000


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("v9:2x2", "unknown chip"),
        ("h100:8", "CUDA plug-in"),
        ("H100:8", "CUDA plug-in"),
        ("v5e", "write it like v5e:16x16"),
        ("v5p:4x", "write it like v5p:4x4x4"),
        ("cpu:99", "xla_force_host_platform_device_count"),
        ("cpu", "devices"),
    ],
)
def test_machines_that_are_none_are_refused(name, message):
    with pytest.raises(InputError, match=message):
        chips.topology(name)


def test_a_batch_that_does_not_divide_is_refused_before_anything_is_compiled():
    config = configs.load("configs/clip.py:small", [*TINY, "--config.batch_size=30"])
    with pytest.raises(InputError, match="batch_size=30"):
        compile.plan(config, chips.topology("cpu:4"))


@pytest.mark.parametrize("batch", ["0", "-5"])
def test_a_batch_of_nothing_is_refused(batch, capsys):
    with pytest.raises(SystemExit):
        cli.main(["plan", "--config", "configs/clip.py:small", "--topology", "cpu:1", "--batch", batch, *TINY])
    assert f"batch_size={batch}" in capsys.readouterr().err


def with_tpu_compiler(*arguments):
    """In a process of its own: the TPU compiler stays in the process that has loaded it."""
    python = os.environ.get("MIXCON_TPU_PYTHON") or (sys.executable if importlib.util.find_spec("libtpu") else "")
    if not python:
        pytest.skip("needs the extra tpu-plan here, or MIXCON_TPU_PYTHON: a Python that has it")
    environment = {key: value for key, value in os.environ.items() if key != "XLA_FLAGS"}
    subprocess.run([python, "-m", *arguments], env=environment, check=True, timeout=900)


@pytest.mark.slow
def test_a_tpu_that_is_not_here(tmp_path):
    arguments = ("--config", "configs/clip.py:small", "--topology", "v5e:2x2", *TINY, "--out", str(tmp_path))
    with_tpu_compiler("mixcon", "plan", *arguments)
    (row,) = json.loads((tmp_path / "plan.json").read_text())
    assert row["fits"]
    assert row["chips"] == 4
    assert 0 < row["activations"] < row["temporaries"]
    assert row["seconds"].keys() == {"compute", "memory", "network", "compiler"}
    assert 0 < row["utilization"] < 1


@pytest.mark.slow
def test_no_array_of_a_full_size_step_on_a_pod_holds_the_pairs_of_the_batch(tmp_path):
    with_tpu_compiler("benchmarks.pair_buffers", "clip:b32", "--topology", "v5e:16x16", "--out", str(tmp_path))
    (row,) = json.loads((tmp_path / "pair_buffers.json").read_text())
    assert row["pairs"] == 131**2  # one tile of the ring
    assert row["share"] == 131**2 * 256
