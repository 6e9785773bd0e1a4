"""What a full-size model needs, from its config.json alone: memory at several budgets, or hours of an evaluation.

    python -m eval.plan --config=configs/plan.py --config.model=configs/models/qwen3_vl_30b_a3b
    python -m eval.plan --config=configs/plan_evaluation.py

With the config key `data_sets`: the hours of each data set on each card, batch by batch and in the best blocks of
batches, simulated, with what was assumed. Otherwise: how the model would be divided between device, host and disk.
"""

import sys

from expertflow_jax import cli


def main(invocation: cli.Invocation) -> None:
    if "data_sets" in invocation.config:
        from expertflow_jax.studies.hours import show_hours

        show_hours(invocation.config)
    else:
        from expertflow_jax.studies.memory import show_plans

        show_plans(invocation.config)


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__, needs_workdir=False))
