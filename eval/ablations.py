"""What would the engine gain from being built otherwise? Replays its variants on recorded routing, in simulated time.

    python -m eval.ablations --config=configs/ablations.py --workdir=runs/ablations

Pool per layer or shared, whole experts or parts, orders of prefetch, fresh or stale forecasts, and more, through the
real engine on a virtual clock: the same config gives the same numbers on any machine. Writes ablations.jsonl and
ablations.md.
"""

import sys

from expertflow_jax import cli


def main(invocation: cli.Invocation) -> None:
    from expertflow_jax.studies.ablations import runner as ablations

    if invocation.dry_run:
        ablations.plan(invocation.config)
        return
    assert invocation.workdir is not None
    ablations.measure(invocation.config, invocation.workdir)


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__))
