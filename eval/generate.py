"""Answers one prompt with a model under a memory budget, streaming tokens, and says what it cost.

python -m eval.generate --config=configs/generate.py --prompt="What is the largest digit?" --image=scene.png
"""

import argparse
import sys
import time

from expertflow_jax import cli


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", help="the user's turn; only a dry run may do without")
    parser.add_argument("--image", metavar="FILE", help="an image that goes with it")


def main(invocation: cli.Invocation) -> None:
    from rich.console import Console

    from expertflow_jax.api import OffloadedModel
    from expertflow_jax.errors import InputError
    from expertflow_jax.inference.planning import ModelSizes, plan_service
    from expertflow_jax.locate import committed_predictor, locate
    from expertflow_jax.offload.budget import MemoryPlan, format_bytes
    from expertflow_jax.predictor import load_predictor

    config, options = invocation.config, invocation.options
    console = Console(highlight=False, soft_wrap=True)
    predictor = committed_predictor(config.model) if config.predictor == "auto" else config.predictor
    limits = {
        "memory_budget": config.memory_budget or None,
        "cache_fraction": None if config.memory_budget else config.cache_fraction or None,
        "max_batch_size": 1,
        "max_tokens": config.max_tokens,
        "max_image_tokens": config.max_image_tokens,
    }
    kept = {"expert_dtype": config.expert_dtype or None, "host_memory_budget": config.host_memory_budget or None}

    def show(plan: MemoryPlan) -> None:
        for part, size in [*plan.describe(), *plan.describe_tiers()[1:]]:
            console.print(f"{part:<28} {format_bytes(size)}")

    if invocation.dry_run:  # needs config.json, and no weights
        sizes = ModelSizes.described_in(locate(config.model, weights=False), config.dtype or None, **kept)
        forecaster = load_predictor(locate(predictor, "predictor")) if predictor else None
        show(plan_service(sizes, forecaster, **limits)[1])
        return
    if options.prompt is None:
        raise InputError("--prompt is missing: what should be answered? (--dry_run prints the memory plan alone)")
    with OffloadedModel.from_pretrained(
        config.model,
        policy=config.policy,
        miss_policy=config.miss_policy,
        predictor=predictor or None,
        dtype=config.dtype or None,
        link=config.link,
        **kept,
        **limits,
    ) as model:
        show(model.memory_plan())
        shown = ""
        moments = [time.perf_counter()]

        def stream(_: int, text: str) -> None:
            nonlocal shown
            console.print(text[len(shown) :], end="")
            shown = text
            moments.append(time.perf_counter())

        images = [options.image] if options.image else None
        model.generate(
            [options.prompt],
            images,
            max_new_tokens=config.max_new_tokens,
            temperature=config.temperature,
            top_k=config.top_k,
            top_p=config.top_p,
            seed=config.seed,
            stop=config.stop,
            stream=stream,
        )
        stats = model.stats()
        # The first two tokens come with compilation: of the prefill's stages, then of a decode step's.
        speed = f"first token after {moments[1] - moments[0]:.1f} s" if len(moments) > 1 else "no token"
        if len(moments) > 3:
            speed += f", then {(len(moments) - 3) / (moments[-1] - moments[2]):.1f} tokens/s"
        console.print(
            f"\n{speed}, hit rate {stats['hit_rate']:.3f}, "
            f"{format_bytes(stats['bytes_transferred'])} moved, peak {format_bytes(stats['peak_device_bytes'])}"
        )


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__, needs_workdir=False, options=_options))
