"""Answers one prompt with a model under a memory budget, streaming tokens, and says what it cost.

python -m eval.generate --config=configs/generate.py --prompt="What is the largest digit?" --image=scene.png
"""

import argparse
import sys

from expertflow_jax import cli


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--prompt", help="the user's turn; only a dry run may do without")
    parser.add_argument("--image", metavar="FILE", help="an image that goes with it")


def main(invocation: cli.Invocation) -> None:
    from expertflow_jax.terminal import answer_on_screen, show_plan

    if invocation.dry_run:
        show_plan(invocation.config)
    else:
        answer_on_screen(invocation.config, invocation.options.prompt, invocation.options.image)


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__, needs_workdir=False, options=_options))
