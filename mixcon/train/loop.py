"""The one outer loop: data order, checkpoints, preemption, logging and evaluation, for every experiment."""

from __future__ import annotations

import contextlib
import json
import pathlib
import sys
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import ml_collections
import numpy as np
from jax.sharding import Mesh

from mixcon import config as configs
from mixcon.errors import InputError
from mixcon.evals.artifacts import save_artifact
from mixcon.train import distributed, seeds
from mixcon.train import mesh as meshes
from mixcon.train.checkpoint import Checkpoints, write_atomically
from mixcon.train.goodput import Goodput
from mixcon.train.guards import disk_errors, stop_signals, workdir_lock
from mixcon.train.logbook import Logbook
from mixcon.train.provenance import compare, provenance
from mixcon.train.state import Experiment, Metrics, PyTree, TrainState, init_state

LEAST = {"seed": 0, "steps": 1, "log_every": 1, "eval_every": -1, "checkpoint.every": 1, "checkpoint.keep": 1}


class CutOff(Exception):
    """An evaluation was asked to stop before all evaluators had run."""


def never(step: int) -> bool:
    """Asked whether to stop, no."""
    return False


class Pending(NamedTuple):
    """A step that has been dispatched and not yet looked at."""

    step: int
    metrics: Metrics
    skipped: int  # records that the data path had to replace


def build(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> Experiment:
    """The experiment that a config names; it may keep files of its own, such as a tokenizer, in the workdir."""
    configs.make_importable()
    make = configs.resolve(f"{config.experiment}.build")
    if make is build:
        raise InputError(
            f"experiment={config.experiment!r} is the loop, not an experiment; name a module with a function "
            "build(config, workdir), such as experiments.clip"
        )
    if not (several := config.get("seeds", ())):
        return make(config, workdir)
    each = [make(seeds.alone(config, seed), workdir / seeds.NAME.format(seed)) for seed in several]
    return seeds.side_by_side(each, several, ema=bool(config.ema))


def train(
    config: ml_collections.ConfigDict,
    workdir: str | pathlib.Path,
    *,
    progress: bool = True,
    allow_config_change: bool = False,
) -> TrainState:
    """Run a config to its last step, from wherever its workdir stands.

    Args:
      config: resolved and locked.
      workdir: folder of the run; created, resumed when it holds checkpoints.
      progress: draw a progress bar.
      allow_config_change: resume although the config is not the one of the checkpoint.

    Returns:
      The last state.

    Raises:
      InputError: whatever the user can put right: mesh, batch, data, config, disk, non-finite loss.

    Example:
      >>> train(configs.load("configs/clip.py:small"), "runs/clip")
    """
    workdir = pathlib.Path(workdir)
    goodput = Goodput()
    configs.check_minimum(config, LEAST)
    mesh = meshes.make_mesh(**config.mesh)
    meshes.check_batch(config.batch_size, mesh, parts=config.gradient.get("parts", 1))
    with workdir_lock(workdir), jax.set_mesh(mesh), disk_errors(workdir):
        checkpoints = Checkpoints(workdir, keep=config.checkpoint.keep, keep_every=config.checkpoint.keep_every)
        with goodput.measure("startup"):
            run, state, start = prepare(config, workdir, mesh, checkpoints, goodput, progress, allow_config_change)
            distributed.meet("prepared")
        try:
            state = run(state, start)
        except BaseException:
            if jax.process_count() == 1:  # several write a checkpoint together, and the others may be gone
                with contextlib.suppress(Exception):  # a save under way may yet succeed; the first error is to be told
                    checkpoints.close()
            raise
        finally:
            run.logbook.close()
        with goodput.measure("checkpoint"):
            checkpoints.close()
        if jax.process_index() == 0 and start < config.steps:
            write_atomically(workdir / "goodput.json", json.dumps(goodput.summary()))
            print(goodput.line(), file=sys.stderr)
        return state


def prepare(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    mesh: Mesh,
    checkpoints: Checkpoints,
    goodput: Goodput,
    progress: bool,
    allow_config_change: bool,
) -> tuple[Run, TrainState, int]:
    """The run, its state and its step: from the newest checkpoint, or from the beginning."""
    text = configs.to_json(config)
    record = provenance(text, mesh)
    experiment = build(config, workdir)
    iterator = experiment.batches()
    shapes, places = state_layout(experiment, config, mesh)
    warn([f"the writing of step {step} was cut off; nothing of it is used" for step in checkpoints.unfinished()])
    restored = checkpoints.restore(with_sharding(shapes, places))
    if restored is not None:
        warn(restored.warnings)  # at once: the next start will not meet these steps again
        try:
            warn(compare(record, restored.provenance, step=restored.step, allow_config_change=allow_config_change))
            iterator.set_state(restored.data)
        except (LookupError, TypeError, AttributeError) as error:  # its checksums are gone or were made anew
            folder = checkpoints.directory / str(restored.step)
            raise InputError(f"{folder} holds no config or place in the data ({error}); take it away") from error
    if jax.process_index() == 0:
        write_atomically(workdir / "config.json", text)
        started = {**record, "argv": sys.argv, "started": time.time()}
        write_atomically(workdir / "run.json", json.dumps(started, indent=2))
    start = restored.step if restored else 0
    state = restored.state if restored else first_state(experiment, config, places)
    logbook = Logbook(workdir, resume_step=start, total=config.steps, progress=progress)
    if restored is not None:
        logbook.say(f"resuming from the checkpoint of step {start}")
    return Run(config, workdir, experiment, mesh, iterator, checkpoints, logbook, goodput, record), state, start


def warn(sentences: Sequence[str]) -> None:
    """On the terminal of process 0."""
    for sentence in sentences if jax.process_index() == 0 else ():
        print(f"warning: {sentence}", file=sys.stderr)


class Run:
    """The steps of one session of a run, and what happens between them."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        workdir: pathlib.Path,
        experiment: Experiment,
        mesh: Mesh,
        iterator: Any,
        checkpoints: Checkpoints,
        logbook: Logbook,
        goodput: Goodput,
        record: Mapping[str, Any],
    ):
        self.config, self.workdir, self.experiment, self.record = config, workdir, experiment, record
        self.iterator, self.checkpoints, self.logbook, self.goodput = iterator, checkpoints, logbook, goodput
        self.sharding = meshes.batch_sharding(mesh)
        self.pending: deque[Pending] = deque()
        self.fixed = {k: jax.device_put(v, meshes.replicated(mesh)) for k, v in experiment.fixed.items()}
        self.last_log = (0, 0.0)
        self.skipped = 0
        self.ended_at = 0  # the step after which the loss had not improved for long enough

    def __call__(self, state: TrainState, start: int) -> TrainState:
        """From step `start` to the last one, or to a signal."""
        config, total = self.config, self.config.steps
        if start and self.due_eval(start) and not self.logbook.evaluated(start):
            self.evaluate(state, start, never)  # the session before was stopped before or in its evaluation
        if start >= total:
            self.logbook.say(f"nothing to do: the checkpoint is already at step {start} of {total}")
            return state
        if self.experiment.patience and int(jax.device_get(state.patience.stale)) >= self.experiment.patience:
            if not self.logbook.evaluated(start) and config.eval_every >= 0:
                self.evaluate(state, start, never)
            self.logbook.say(f"nothing to do: the loss had stopped improving at step {start}")
            return state
        step, batch = self.compile(state)
        self.last_log = (start, time.perf_counter())
        alone = jax.process_count() == 1  # several agree on a step, and cannot in the middle of one
        with stop_signals() as stop:
            for number in range(start + 1, total + 1):
                if number > start + 1:
                    batch = self.fetch()
                state = self.dispatch(step, state, batch, number)
                while len(self.pending) > 1:
                    self.settle(state)
                stopping = stop(number)
                due_eval = self.due_eval(number)
                due_save = number == total or stopping or number % config.checkpoint.every == 0
                if due_eval or due_save:
                    while self.pending:
                        self.settle(state)
                if self.ended_at:
                    self.end(state)
                    break
                if due_save:
                    self.save(state)
                if stopping:
                    self.logbook.say(f"stopping at step {number} as asked by a signal; start the same command to go on")
                    break
                if due_eval and not self.evaluate(state, number, stop if alone else never):
                    if not due_save:
                        self.save(state)  # the next start makes up for the evaluation, which belongs to this step
                    self.logbook.say(f"stopping in the evaluation of step {number} as asked by a signal")
                    break
            with self.goodput.measure("checkpoint"):
                self.checkpoints.wait()  # a signal that comes now must not end the last save
        return state

    def end(self, state: TrainState) -> None:
        """Save and evaluate the state that has waited long enough; steps dispatched since have left it as it was."""
        self.pending.clear()
        with self.goodput.measure("checkpoint"):
            self.checkpoints.save(state, {"next_index": self.ended_at}, self.record)
        self.logbook.say(f"step {self.ended_at}: no lower loss for {self.experiment.patience} steps; the run ends here")
        if self.config.eval_every >= 0:
            self.evaluate(state, self.ended_at, never)

    def due_eval(self, number: int) -> bool:
        """Whether the evaluators run after this step."""
        every, total = self.config.eval_every, self.config.steps
        return every >= 0 and (number == total or number % (every or total) == 0)

    def compile(self, state: TrainState) -> tuple[Any, dict[str, np.ndarray]]:
        """The step for this state and the first batch, compiled before any data is trained on."""
        with self.goodput.measure("data_wait"):
            batch = next(self.iterator)
        with self.goodput.measure("compile"):
            on_device = meshes.put_batch(device_part(batch), self.sharding) | self.fixed
            places = jax.tree.map(lambda x: x.sharding, state)
            jitted = jax.jit(self.experiment.step, donate_argnums=0, out_shardings=(places, None))
            compiled = jitted.lower(state, on_device).compile()
            distributed.meet("compiled")
            return compiled, batch

    def busy(self) -> bool:
        """Whether the device still has work."""
        return bool(self.pending) and not is_ready(self.pending[-1].metrics["loss"])

    def fetch(self) -> dict[str, np.ndarray]:
        """The next host batch."""
        before = self.goodput.clock()
        batch = next(self.iterator)
        self.goodput.seconds["step" if self.busy() else "data_wait"] += self.goodput.clock() - before
        return batch

    def dispatch(self, step: Any, state: TrainState, batch: dict[str, np.ndarray], number: int) -> TrainState:
        """Hand a step to the device and return at once."""
        before, was_busy = self.goodput.clock(), self.busy()
        placed = meshes.put_batch(device_part(batch), self.sharding) | self.fixed
        with jax.transfer_guard("disallow"):
            state, metrics = step(state, placed)
        ran_inline = is_ready(metrics["loss"])
        if was_busy or ran_inline:
            self.goodput.seconds["step"] += self.goodput.clock() - before
        self.pending.append(Pending(number, metrics, int(np.sum(batch.get("skipped", 0)))))
        return state

    def settle(self, state: TrainState) -> None:
        """Wait for the oldest step, look at its health, log it."""
        done = self.pending.popleft()
        with self.goodput.measure("step"):
            halted_at = int(jax.device_get(done.metrics["halted_at"]))  # waits: outputs of a step come together
        self.skipped += done.skipped
        if halted_at >= 0:
            self.stop_at_nonfinite(state, halted_at, done)
        if self.ended_at:
            return  # of a step that was dispatched before the end was seen, and did nothing
        if self.experiment.patience and int(jax.device_get(done.metrics["stale"])) >= self.experiment.patience:
            self.ended_at = done.step
        if done.step % self.config.log_every and done.step not in (self.config.steps, self.ended_at):
            self.logbook.advance()
            return
        values = {k: float(v) for k, v in jax.device_get(done.metrics).items() if k != "halted_at"}
        (last_step, last_time), now = self.last_log, time.perf_counter()
        rate = (done.step - last_step) * self.config.batch_size / max(now - last_time, 1e-9)
        self.last_log = (done.step, now)
        epoch = done.step / self.experiment.steps_per_epoch
        written = {**values, "epoch": epoch, "skipped_records": float(self.skipped)}
        self.logbook.write(done.step, {f"train/{k}": v for k, v in written.items()} | {"timing/examples_per_s": rate})
        self.logbook.advance(loss=f"{values['loss']:.4f}", examples_per_s=f"{rate:.0f}")

    def stop_at_nonfinite(self, state: TrainState, halted_at: int, done: Pending) -> None:
        """Keep the frozen state, which is the one from before the bad step, and stop."""
        self.pending.clear()
        self.checkpoints.save(state, {"next_index": halted_at}, self.record)
        self.checkpoints.close()
        loss, norm = (float(jax.device_get(done.metrics[k])) for k in ("loss", "grad_norm"))
        raise InputError(
            f"loss or gradient is not finite at step {halted_at + 1} (loss {loss}, gradient norm {norm}). "
            f"The state from before it is checkpoint {halted_at} in {self.checkpoints.directory}. "
            "Lower the learning rate, clip the gradient, or leave such steps out with nonfinite='skip'."
        )

    def save(self, state: TrainState) -> None:
        """Checkpoint; the loop waits only for the copy to the host."""
        with self.goodput.measure("checkpoint"):
            self.checkpoints.save(state, self.iterator.get_state(), self.record)

    def evaluate(self, state: TrainState, number: int, interrupted: Callable[[int], bool]) -> bool:
        """Every evaluator: scalars to the log, arrays to files for the report. False if it was cut off."""
        with self.goodput.measure("eval"):
            try:
                values = run_evals(self.experiment, state, self.workdir, number, interrupted)
            except CutOff:
                return False
            if values:
                self.logbook.write(number, values)
        shown = {k: v for k, v in values.items() if k.endswith("R@10")}
        if shown:
            self.logbook.say(f"step {number}: " + ", ".join(f"{k} {v:.3f}" for k, v in shown.items()))
        self.last_log = (number, time.perf_counter())
        return True


def run_evals(
    experiment: Experiment,
    state: TrainState,
    workdir: pathlib.Path,
    step: int,
    interrupted: Callable[[int], bool] = never,
) -> dict[str, float]:
    """Scalars of all evaluators by `eval/<evaluator>/<name>`; their artifacts go to the workdir.

    `interrupted` is asked before each evaluator; once it says so, no further one is started (`CutOff`).
    """
    scalars: dict[str, float] = {}
    for name, evaluator in experiment.evals.items():
        if interrupted(step):
            raise CutOff
        for key, value in evaluator(state):
            if isinstance(value, Mapping):
                if jax.process_index() == 0:
                    save_artifact(workdir, step, f"{name}_{key}".replace("/", "_"), value)
            else:
                scalars[f"eval/{name}/{key}"] = float(value)
    return scalars


def state_layout(experiment: Experiment, config: ml_collections.ConfigDict, mesh: Mesh) -> tuple[PyTree, PyTree]:
    """Shapes of the train state and the sharding of each, nothing allocated."""
    shapes = jax.eval_shape(lambda: init_state(experiment, seeds.of_config(config), ema=bool(config.ema)))
    return shapes, meshes.shardings(shapes, mesh, rules=config.sharding.rules, fsdp=config.sharding.fsdp)


def first_state(experiment: Experiment, config: ml_collections.ConfigDict, places: PyTree) -> TrainState:
    """The state before the first step, every array built where it will live."""
    build = jax.jit(lambda seed: init_state(experiment, seed, ema=bool(config.ema)), out_shardings=places)
    state = build(seeds.of_config(config))
    if experiment.pretrained is None:
        return state
    params, extra = experiment.pretrained
    return state._replace(
        params=jax.device_put(params, places.params),
        extra=jax.device_put(extra, places.extra),
        ema=jax.device_put(params, places.ema) if config.ema else (),
    )


def with_sharding(shapes: PyTree, places: PyTree) -> PyTree:
    """Shapes that know where they belong."""
    return jax.tree.map(lambda s, p: jax.ShapeDtypeStruct(s.shape, s.dtype, sharding=p), shapes, places)


def is_ready(x: jax.Array) -> bool:
    """Whether the device has finished computing an array."""
    return x.is_ready()  # type: ignore[attr-defined]  # of every concrete array


def device_part(batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Without what only the loop reads."""
    return {k: v for k, v in batch.items() if k != "skipped"}
