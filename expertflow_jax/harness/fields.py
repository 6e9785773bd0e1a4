"""Every key of every result row: its type, unit, range and meaning, and which commands write it.

Rows are checked against this table before they are written, csv columns come in its order, and docs/results.md is made
from it (`python -m expertflow_jax.harness.results_page`). Rates are in [0, 1], times in seconds, sizes in bytes.
"""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from expertflow_jax.errors import InputError, brief

LARGEST = 1e300  # of any number, so that sums of rows stay finite
Plain = bool | int | float | str


@dataclasses.dataclass(frozen=True)
class Field:
    """One key.

    Attributes:
      kind: bool, int, float or str.
      commands: that write it: study, throughput, scale (kinds host and scheduler), ablations, blocks, lossy.
      unit: "" for texts, flags, counts and rates.
      low, high: least and greatest value of a number.
      optional: may be null.
    """

    name: str
    kind: type
    commands: str
    meaning: str
    unit: str = ""
    low: float = 0.0
    high: float = math.inf
    optional: bool = False

    def check(self, value: Any) -> Plain | None:
        """`value` as a plain Python value; NumPy scalars are welcome.

        Raises:
          InputError: it cannot be one of this key.
        """
        if value is None and self.optional:
            return None
        if isinstance(value, np.generic):
            value = value.item()
        if self.kind is str:
            if isinstance(value, str) and value and value.isprintable():
                return value
            raise self._error(value, "want text")
        if self.kind is bool:
            if isinstance(value, bool):
                return value
            raise self._error(value, "want true or false")
        if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) <= LARGEST:
            raise self._error(value, "want a finite number")
        if not self.low <= value <= self.high:
            raise self._error(value, f"outside [{self.low:g}, {self.high:g}]")
        if self.kind is int and not isinstance(value, int):
            raise self._error(value, "want a whole number")
        return value if self.kind is int else float(value)

    def _error(self, value: Any, wanted: str) -> InputError:
        return InputError(f"result row: {self.name} is {brief(repr(value))}, {wanted}")


def _rate(name: str, commands: str, meaning: str, optional: bool = False) -> Field:
    return Field(name, float, commands, meaning, high=1.0, optional=optional)


def _score(name: str, meaning: str) -> Field:
    return _rate(name, "study", f"{meaning}; null where answers are not public", optional=True)


def _change(name: str, meaning: str) -> Field:
    return Field(name, float, "study", f"{meaning}; null likewise", low=-1.0, high=1.0, optional=True)


def _text(name: str, commands: str, meaning: str) -> Field:
    return Field(name, str, commands, meaning)


def _count(name: str, commands: str, meaning: str, unit: str = "", low: float = 0.0) -> Field:
    return Field(name, int, commands, meaning, unit, low)


def _seconds(name: str, commands: str, meaning: str) -> Field:
    return Field(name, float, commands, meaning, "s")


def _number(name: str, commands: str, meaning: str, unit: str = "", optional: bool = False) -> Field:
    return Field(name, float, commands, meaning, unit, optional=optional)


BOTH = "study throughput"
_FIELDS = (
    _text("cell_id", "study", "names the cell's files; made of its coordinates"),
    Field(
        "predictions_sha256",
        str,
        "study",
        "SHA-256 of the cell's predictions file, in hexadecimal",
        optional=True,
    ),
    Field(
        "arrays_sha256",
        str,
        "study",
        "SHA-256 of the arrays that other cells are compared with; null where there are none",
        optional=True,
    ),
    _count("cell", "scale blocks lossy", "number of the cell in the config's order"),
    _text("kind", "scale", "host or scheduler"),
    _text("sweep", "scale", "which plot the cell belongs to"),
    _text("model", f"{BOTH} ablations blocks lossy", "name of the model, or of the shape that replays its routing"),
    _text("task", "study", "benchmark"),
    _text("split", "study", "of the benchmark"),
    _text("phase", "throughput", "prefill or decode, timed apart"),
    _text("workload", "scale", "what the scheduled sequences are"),
    _text("machine", "scale blocks lossy", "that is simulated"),
    _text(
        "variant",
        "throughput ablations blocks lossy",
        "what ran: the policy with its forecast, or a build of the engine",
    ),
    _text(
        "policy",
        f"{BOTH} scale blocks lossy",
        "cache policy; in a study with its options and forecast as the config names it",
    ),
    _text("forecast", f"{BOTH} blocks", "where the policy learns of what comes: none, hidden, predictor or truth"),
    _text("scheduler", "study scale", "token scheduler"),
    _text("miss_policy", "study lossy", "what happens when an expert is not there; wait changes nothing"),
    Field("miss_options", str, "study lossy", "all options of the miss policy with their values", optional=True),
    _text("expert_dtype", "study", "that experts are kept, moved and cached in; int8 and int4 change answers"),
    Field("lossless", bool, "study", "nothing changes answers: policy, misses, experts as in the checkpoint"),
    _text("size", "study", "the cell's size as the config names it: slots / experts, or device memory for everything"),
    _rate("cache_fraction", f"{BOTH} scale ablations blocks lossy", "slots / experts"),
    _count("slots", f"{BOTH} blocks lossy", "experts that fit on the device"),
    _count("memory_budget_bytes", f"{BOTH} blocks", "device memory for everything, as planned", "bytes"),
    _count("peak_device_bytes", BOTH, "largest sum of everything on the device during the run", "bytes"),
    Field("memory_saved", float, "throughput", "1 - budget / that of the all-resident run", low=-math.inf, high=1.0),
    _count("host_bytes", "study", "host memory that experts take", "bytes"),
    _count("expert_bytes", f"{BOTH} blocks lossy", "of one expert", "bytes"),
    _count("num_layers", "scale", "MoE layers"),
    _count("num_experts", "scale", "of a layer"),
    _count("top_k", "scale", "experts of a token"),
    _count("batch_size", f"{BOTH} scale ablations blocks lossy", "sequences that run together"),
    _count("batches_per_block", f"{BOTH} blocks", "batches that go through the layers together", low=1),
    _count("window", "throughput scale blocks lossy", "sequences that the scheduler sees at once, or of the whole run"),
    _count("prompt_tokens", "blocks", "of every prompt; 0: as recorded"),
    _count("new_tokens", "blocks lossy", "decode steps after the prompt"),
    _text("room", "blocks", "what was given: @cache fraction, or device memory"),
    _count("seed", "study", "of scheduling and resampling"),
    _count("num_examples", "study", "questions, or texts"),
    _count("units", "study", "independent clusters behind intervals and tests: images, or sequences of text"),
    _count("repeats", "throughput", "timed runs behind the medians"),
    _count("steps", "throughput", "of the window"),
    _text("evaluator", "study", "whose rule accuracy is by, with its version"),
    _score("accuracy", "the task's official metric"),
    _score("accuracy_ci_low", "95 % interval, clustered by image"),
    _score("accuracy_ci_high", "95 % interval, clustered by image"),
    _score("reference_accuracy", "of the all-resident run in order of arrival"),
    Field("second_evaluator", str, "study", "whose rule second_accuracy is by; null: there is none", optional=True),
    _rate("second_accuracy", "study", "of the same answers by the second evaluator", optional=True),
    _rate("second_reference_accuracy", "study", "the same of the all-resident run in order of arrival", optional=True),
    _change("accuracy_delta", "accuracy less the reference's, paired by example"),
    _change("delta_ci_low", "95 % interval of the difference, not adjusted for other cells; 0 to 0 is proof by bits"),
    _change("delta_ci_high", "95 % interval of the difference, not adjusted for other cells; 0 to 0 is proof by bits"),
    _count("flips", "study", "examples whose answer differs from the reference's"),
    _score("p_value", "two-sided, of no difference: signs of whole clusters flipped; not adjusted for cells"),
    _score("equivalence_p", "two one-sided tests of a difference beyond the margin; not adjusted; 0: proof by bits"),
    _rate("equivalence_margin", "study", "least difference in accuracy that counts as an impact"),
    _score("mcnemar_p", "exact McNemar test as if examples were independent; describes, no claim rests on it"),
    _number("logit_kl", "study", "KL(reference || cell) of the first answer token, mean over examples", "nats"),
    Field(
        "margin_delta",
        float,
        "study",
        "change of the first answer token's margin: log-probability of the reference's token less the best other's",
        "nats",
        low=-math.inf,
    ),
    _rate("dropped_rate", "study lossy", "choices of a token in a layer that did not run, over all choices"),
    _rate("deferred_rate", "study lossy", "choices whose output is added one MoE layer later, over all choices"),
    _rate("exchanged_rate", "study lossy", "choices in whose place another expert ran, over all choices"),
    _rate(
        "discarded_mass", "study lossy", "router weight whose expert did not run, over all weight; each token counts 1"
    ),
    Field("bit_identical", bool, "study", "every logit has the bits of the all-resident run of the same batches"),
    _number("perplexity", "study", "of a text's tokens; null for tasks that generate answers", optional=True),
    _count("tokens", f"{BOTH} blocks lossy", "prompt and answer tokens processed"),
    _number(
        "tokens_per_second",
        f"{BOTH} scale blocks lossy",
        "of the run; simulated in scale, null under its real clock",
        "1/s",
        True,
    ),
    _number("tokens_per_second_min", "throughput", "least of the repeats", "1/s"),
    _number("tokens_per_second_max", "throughput", "greatest of the repeats", "1/s"),
    _number("tokens_per_second_with_host", "scale", "the same if the host's time came on top in full", "1/s", True),
    _number(
        "limit_tokens_per_second", "throughput blocks", "tokens / max(resident time, least_bytes / bandwidth)", "1/s"
    ),
    _number("fraction_of_limit", "throughput blocks", "speed over that limit, which is of the order that was run"),
    _number("best_order_tokens_per_second", "throughput blocks", "the same limit with best_order_bytes", "1/s"),
    _number("fraction_of_resident", "blocks", "speed over that of the compute alone"),
    _seconds("wall_seconds", f"{BOTH} blocks lossy", "of the run, by its clock"),
    _seconds(
        "compute_seconds",
        f"{BOTH} blocks lossy",
        "stages on the device; under the real clock whatever is no other kind",
    ),
    _seconds("stall_seconds", f"{BOTH} blocks lossy", "compute waited for experts"),
    _seconds("predictor_seconds", f"{BOTH} blocks", "the routing path predictor ran"),
    _count("predictor_tokens_saved", "study", "that it did not have to read: nearly all experts were wanted anyway"),
    Field(
        "simulated_seconds",
        float,
        "throughput",
        "what the simulator says of wall_seconds, with costs taken in this run; null where it says nothing",
        "s",
        optional=True,
    ),
    _seconds("host_seconds", "throughput", "in the engine's books, waiting left out"),
    _number(
        "first_token_seconds",
        "study blocks",
        "from the beginning of an answer's batch (blocks: of its block) to its first token, mean; null: no answers",
        "s",
        True,
    ),
    _seconds("link_seconds", "throughput blocks", "the link was occupied"),
    _rate("overlap", "throughput", "share of transfers' time in which compute did not wait; null: none moved", True),
    _count("bytes_transferred", f"{BOTH} ablations blocks lossy", "from host to device", "bytes"),
    _count(
        "least_bytes", "throughput blocks", "what an offline-optimal cache moves in the order that was run", "bytes"
    ),
    _count("best_order_bytes", "throughput blocks", "the same with all batches of the window in one block", "bytes"),
    _count("disk_bytes", "study", "read from the checkpoint's files for experts that were not in host memory", "bytes"),
    _count("prefetches", f"{BOTH} blocks", "experts that travelled unasked"),
    _count("wasted_prefetches", "throughput blocks", "of them, those that left unused"),
    _count("hits", f"{BOTH} blocks lossy", "requests of a (layer, expert) by a step that found it in its slot"),
    _count("late", f"{BOTH} blocks lossy", "requests that found it under way"),
    _count("misses", f"{BOTH} blocks lossy", "requests that found it neither there nor under way"),
    _count("corrections", f"{BOTH} blocks", "mispredictions repaired at run time"),
    _rate("hit_rate", f"{BOTH} scale ablations blocks lossy", "hits / requests; null if there was none", optional=True),
    _rate("forecast_recall", "throughput", "of the experts used, those among as many of the highest forecast", True),
    _number("experts_per_batch", "study", "distinct experts, mean over batches and layers"),
    _count("new_compilations", "throughput", "executables made after the warm-up"),
    _number("host_us", "scale", "CPU time of the engine per layer-step, least of repeats", "µs"),
    _number("host_us_median", "scale", "the same, median of repeats", "µs"),
    _number("asked", "scale", "experts asked for per layer-step"),
    _number("transfers", "scale", "experts sent for per layer-step"),
    _number("rounds", "scale", "of compute per layer-step"),
    _seconds("seconds", "scale ablations", "scale: CPU time of planning a window; ablations: simulated, whole trace"),
    _seconds("seconds_per_sequence", "scale", "planning time over the window"),
    _seconds("scheduled_seconds", "scale", "simulated time of running what was planned"),
    _number("share", "scale", "planning over running"),
    _rate("steps_without_miss", "ablations", "decode steps whose experts were all in slots when asked for"),
    _rate("layers_without_miss", "ablations", "the same of layer-steps"),
    _number("layers_until_miss", "ablations", "layers of a decode step before the first that misses, mean"),
    _text("link", f"{BOTH} blocks lossy", "between host and device"),
    _number("gigabytes_per_second", "throughput", "of the link; null if it is not stated", "GB/s", True),
    _number("latency_us", "throughput", "of a transfer", "µs"),
    _text("clock", f"{BOTH} scale blocks lossy", "virtual: reproducible; real: this machine's"),
    _text("device", BOTH, "that computed"),
)
FIELDS: dict[str, Field] = {field.name: field for field in _FIELDS}


def keys_of(command: str) -> tuple[str, ...]:
    """Names of a command's keys, in the table's order."""
    return tuple(field.name for field in _FIELDS if command in field.commands.split())


def checked(command: str, row: Mapping[str, Any]) -> dict[str, Plain | None]:
    """The row with plain values.

    Raises:
      InputError: a key that the command does not have, or a value that cannot be.
    """
    known = keys_of(command)
    for name in row:
        if name not in known:
            raise InputError(f"result row: unknown key {name!r}")
    return {name: FIELDS[name].check(value) for name, value in row.items()}
