"""Trains the routing path predictor of a served model: records routing traces, trains, calibrates, reports, exports.

    python -m train.predictor --config=configs/digit_scenes_predictor.py --workdir=runs/digit_scenes_predictor

Rerun the same command after a kill: finished traces are kept and training goes on from the newest checkpoint. The
export, WORKDIR/export, holds predictor.safetensors, predictor_config.json and README.md (seed, command, metrics);
WORKDIR/report.json, report.md and recall.png compare it with popularity and next-router speculation.
"""

import sys

from expertflow_jax import cli


def main(invocation: cli.Invocation) -> None:
    from expertflow_jax.training import predictor_run as run

    if invocation.dry_run:
        run.print_plan(invocation.config)
    else:
        run.train_and_export(invocation)


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__))
