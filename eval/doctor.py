"""The first minute on a new machine: does the device do what offloading needs, and what is to be done if not?

    python -m eval.doctor --config=configs/doctor.py --workdir=runs/doctor

Device and driver, XLA's caps on pinned and device memory, the link's bandwidth and the engine's share of it, what a
small upload waits for behind a large copy, overlap of copies and compute, bits of experts in groups, and decoding with
all and with half of the experts. Prints verdicts with remedies and writes doctor.json into the workdir. On a CPU it
says which of them that cannot tell.
"""

import sys

from expertflow_jax import cli


def main(invocation: cli.Invocation) -> None:
    from expertflow_jax.studies.doctor import runner

    if invocation.dry_run:
        runner.plan(invocation.config)
        return
    assert invocation.workdir is not None
    runner.run(invocation.config, invocation.workdir)


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__))
