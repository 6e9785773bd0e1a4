"""Answers one prompt with a model under a memory budget, streaming tokens, and says what it cost.

python -m eval.generate --config=configs/generate.py --prompt="What is the largest digit?" --image=scene.png
"""

import argparse
import sys
import time

from expertflow_jax import cli


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", required=True, help="the user's turn")
    parser.add_argument("--image", metavar="FILE", help="an image that goes with it")


def main(invocation: cli.Invocation) -> None:
    from rich.console import Console

    from expertflow_jax.api import OffloadedModel
    from expertflow_jax.offload.budget import format_bytes

    config, options = invocation.config, invocation.options
    with OffloadedModel.from_pretrained(
        config.model,
        memory_budget=config.memory_budget or None,
        cache_fraction=config.cache_fraction or None,
        policy=config.policy,
        miss_policy=config.miss_policy,
        predictor=config.predictor or None,
        dtype=config.dtype or None,
        link=config.link,
        max_batch_size=1,
        max_tokens=config.max_tokens,
        max_image_tokens=config.max_image_tokens,
    ) as model:
        console = Console(highlight=False, soft_wrap=True)
        for part, size in model.memory_plan().describe():
            console.print(f"{part:<28} {format_bytes(size)}")
        if invocation.dry_run:
            return
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
