"""One answer on a terminal: the memory plan, the answer as it comes, and what it cost. What `eval.generate` runs."""

import sys
import time
from typing import Any

import ml_collections

from expertflow_jax.api import OffloadedModel
from expertflow_jax.errors import InputError
from expertflow_jax.inference.planning import ModelSizes, plan_service
from expertflow_jax.locate import committed_predictor, locate
from expertflow_jax.models.device_form import named_form
from expertflow_jax.offload.budget import MemoryPlan, format_bytes
from expertflow_jax.predictor import load_predictor


def show_plan(config: ml_collections.ConfigDict) -> None:
    """Prints the memory plan; needs the checkpoint's config.json, and no weights."""
    directory, form = locate(config.model, weights=False), named_form(config.get("device_form"))
    sizes = ModelSizes.described_in(directory, config.dtype or None, form=form, **_tiers(config))
    predictor = _predictor(config)
    forecaster = load_predictor(locate(predictor, "predictor")) if predictor else None
    _print_plan(plan_service(sizes, forecaster, **_limits(config))[1])


def answer_on_screen(config: ml_collections.ConfigDict, prompt: str | None, image: str | None) -> None:
    """Prints the plan, the answer's exact text as far as it is certain, and time and traffic.

    Args:
      config: of configs/generate.py.
      prompt: the user's turn.
      image: a file that goes with it.

    Raises:
      InputError: no prompt, or what `OffloadedModel` refuses.
    """
    if prompt is None:
        raise InputError("--prompt is missing: what should be answered? (--dry_run prints the memory plan alone)")
    with OffloadedModel.from_pretrained(
        config.model,
        policy=config.policy,
        miss_policy=config.miss_policy,
        predictor=_predictor(config) or None,
        dtype=config.dtype or None,
        link=config.link,
        device_form=config.get("device_form"),
        **_tiers(config),
        **_limits(config),
    ) as model:
        _print_plan(model.memory_plan())
        screen = Screen()
        model.generate(
            [_utf8(prompt)],
            [image] if image else None,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            seed=config.seed,
            stop=config.stop,
            stream=screen.show,
        )
        stats = model.stats()
    print(
        f"\n{screen.speed()}, hit rate {stats['hit_rate']:.3f}, "
        f"{format_bytes(stats['bytes_transferred'])} moved, peak {format_bytes(stats['peak_device_bytes'])}"
    )


# What a terminal would obey rather than show: cursor moves, titles, colours. A file or a pipe gets the text as it is.
_CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}


class Screen:
    """Writes what is new of a growing text, and notes when."""

    def __init__(self) -> None:
        self._text = ""
        self._moments = [time.perf_counter()]

    def show(self, number: int, text: str) -> None:
        """Writes what `text`, which begins with the text before it, adds."""
        new = text[len(self._text) :]
        sys.stdout.write(new.translate(_CONTROLS) if sys.stdout.isatty() else new)
        sys.stdout.flush()
        self._text = text
        self._moments.append(time.perf_counter())

    def speed(self) -> str:
        """In words. The first two tokens come with compilation: of the prefill's stages, then of a decode step's."""
        moments = self._moments
        speed = f"first token after {moments[1] - moments[0]:.1f} s" if len(moments) > 1 else "no token"
        if len(moments) > 3:
            speed += f", then {(len(moments) - 3) / (moments[-1] - moments[2]):.1f} tokens/s"
        return speed


def _predictor(config: ml_collections.ConfigDict) -> str:
    return committed_predictor(config.model) if config.predictor == "auto" else config.predictor


def _limits(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """What decides the memory plan, as `plan_service` takes it."""
    return {
        "memory_budget": config.memory_budget or None,
        "cache_fraction": None if config.memory_budget else config.cache_fraction or None,
        "max_batch_size": 1,
        "max_tokens": config.max_tokens,
        "max_image_tokens": config.max_image_tokens,
    }


def _tiers(config: ml_collections.ConfigDict) -> dict[str, Any]:
    return {"expert_dtype": config.expert_dtype or None, "host_memory_budget": config.host_memory_budget or None}


def _print_plan(plan: MemoryPlan) -> None:
    for part, size in [*plan.describe(), *plan.describe_tiers()[1:]]:
        print(f"{part:<28} {format_bytes(size)}")


def _utf8(argument: str) -> str:
    """An argument of the command line as UTF-8, whatever the locale took its bytes for."""
    return argument.encode("utf-8", "surrogateescape").decode("utf-8", "surrogateescape")
