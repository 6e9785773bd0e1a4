"""The training loop of everything that is trained here: steps, checkpoints, a log, and resumption after a kill.

A step is a pure function of the state and its number, and a checkpoint holds the whole state, so a killed run that goes
on ends with the same loss as an undisturbed one, and its log has every step once.
"""

import math
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import jax
import optax
import orbax.checkpoint as ocp
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from expertflow_jax import interrupts
from expertflow_jax.errors import InputError, brief
from expertflow_jax.files import check_room, write_error
from expertflow_jax.harness.row_file import with_keys
from expertflow_jax.harness.workdir import Workdir

State = dict[str, Any]
Metrics = Mapping[str, Any]


def adamw(
    learning_rate: optax.Schedule, *, weight_decay: float, clip_norm: float, b2: float
) -> optax.GradientTransformation:
    """AdamW behind a clip of the gradients' norm; weight decay on matrices only."""
    return optax.chain(
        optax.clip_by_global_norm(clip_norm),
        optax.adamw(
            learning_rate,
            b2=b2,
            weight_decay=weight_decay,
            mask=lambda params: jax.tree.map(lambda p: p.ndim >= 2, params),
        ),
    )


def run_steps(
    state: State,
    step: Callable[[State, int], tuple[State, Metrics]],
    workdir: Workdir,
    *,
    steps: int,
    log_every: int,
    checkpoint_every: int,
    name: str,
    measure: Callable[[State, int], Metrics] | None = None,
    on_step: Callable[[int], None] | None = None,
    show_progress: bool = True,
) -> tuple[State, dict[str, float]]:
    """Runs `step` until `steps` are done, from the newest checkpoint of the workdir if there is one.

    Args:
      state: before the first step; a pytree of arrays, which `step` may donate.
      step: (state, number) -> (state, metrics, of which "loss" is one); pure, the metrics scalars on the device.
      workdir: gets `checkpoints/` (Orbax, named by the number of steps done) and `metrics.jsonl`.
      log_every, checkpoint_every: in steps; the last step is logged and kept, and what is kept is logged.
      name: beside the progress bar.
      measure: (state, number) -> more metrics of a step that is logged; called for those alone.
      on_step: called with the number of each finished step.

    Returns:
      The state, and the last logged row: the metrics, "step" and "seconds_per_step".

    Raises:
      FloatingPointError: the loss is not finite.
      InputError: checkpoint or log cannot be written, or the newest checkpoint cannot be read.
    """
    log = workdir.row_file("metrics.jsonl", with_keys("step", "loss"))
    folder = (workdir.path / "checkpoints").absolute()
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    try:
        with ocp.CheckpointManager(folder, options=ocp.CheckpointManagerOptions(max_to_keep=2)) as manager:
            first = 0
            if (latest := manager.latest_step()) is not None:
                state, first = _restored(manager, latest, state), latest
            log.keep(lambda row: row["step"] < first)  # the others come again
            with _progress(show_progress) as progress:
                bar = progress.add_task(name, total=steps, completed=first, note="compiling")
                began = time.perf_counter()
                for number in range(first, steps):
                    interrupts.check()
                    state, metrics = step(state, number)
                    done = number + 1
                    keeps = done % checkpoint_every == 0 or done == steps
                    if keeps or number % log_every == 0:
                        row = {key: float(value) for key, value in metrics.items()}
                        if not math.isfinite(row["loss"]):
                            raise FloatingPointError(
                                f"{name}: loss is {row['loss']} at step {number}; lower the learning rate"
                            )
                        seconds = (time.perf_counter() - began) / (done - first)
                        row |= {"step": number, "seconds_per_step": seconds}
                        log.append(row | dict(measure(state, number) if measure is not None else {}))
                        progress.update(bar, completed=done, note=f"loss {row['loss']:.4f}")
                    if keeps:
                        manager.wait_until_finished()
                        check_room(folder, size)
                        manager.save(done, args=ocp.args.StandardSave(state))
                    if on_step is not None:
                        on_step(number)
                manager.wait_until_finished()
    except OSError as error:
        raise write_error(folder, error) from error
    return state, log.rows[-1]


def _restored(manager: ocp.CheckpointManager, step: int, state: State) -> State:
    """The state after `step` steps; raises InputError if the checkpoint cannot be read."""
    abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, state)
    try:
        return manager.restore(step, args=ocp.args.StandardRestore(abstract))
    except Exception as error:  # a damaged checkpoint fails in Orbax in any way
        reason = brief(" ".join(str(error).split()), 200)
        raise InputError(
            f"{manager.directory / str(step)}: damaged, or of another run ({reason}); delete it to go on from the one "
            "before"
        ) from error


def _progress(show: bool) -> Progress:
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    return Progress(
        *columns,
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}"),
        disable=not show,
        auto_refresh=sys.stdout.isatty(),
    )
