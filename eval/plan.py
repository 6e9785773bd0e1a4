"""How a model would be divided between device, host and disk, for several budgets; config.json is all that is read.

python -m eval.plan --config=configs/plan.py --config.model=configs/models/qwen3_vl_30b_a3b
"""

import sys

from expertflow_jax import cli


def main(invocation: cli.Invocation) -> None:
    from expertflow_jax.studies.memory import show_plans

    show_plans(invocation.config)


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__, needs_workdir=False))
