"""Distils pre-gates from a served model's routers, for the policies `pregated` and `pregated_forecast`.

    python -m train.pregate --config=configs/digit_scenes_pregates.py --workdir=runs/digit_scenes_pregates

Rerun the same command after a kill: training goes on from the newest checkpoint. The export, WORKDIR/export, holds
pregates.safetensors and pregates.json, bound to the model's fingerprint, with the recall of the gates and of the next
router on the same hidden state.
"""

import sys

from expertflow_jax import cli


def main(invocation: cli.Invocation) -> None:
    from expertflow_jax.training import pregates

    if invocation.dry_run:
        pregates.check(invocation.config)
        print(f"{invocation.config.sequences} sequences to record, {invocation.config.steps} steps")
    else:
        pregates.train_and_export(invocation)


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__))
