"""Trains the small MoE vision-language model on digit scenes and exports it in the Hugging Face layout.

    python -m train.moe --config=configs/digit_scenes_moe.py --workdir=runs/digit_scenes_moe

Rerun the same command after a kill: it goes on from the newest checkpoint and ends with the same loss. The export,
WORKDIR/export, holds model.safetensors, config.json, the processor and README.md (seed, command, metrics).
"""

import sys

from expertflow_jax import cli


def main(invocation: cli.Invocation) -> None:
    from expertflow_jax.training import moe_run as run

    if invocation.dry_run:
        run.print_plan(invocation.config)
    else:
        run.train_and_export(invocation)


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__))
