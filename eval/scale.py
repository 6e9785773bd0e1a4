"""What grows with the model? Host bookkeeping, simulated throughput and token scheduling over sizes.

    python -m eval.scale --config=configs/scale_cpu.py --workdir=runs/scale

The real engine and the real schedulers, without weights: CPU time is measured, compute and link are simulated. Writes
results.jsonl, report.md, report.html and plots/ into the workdir. Rerun the same command after a kill: finished cells
are kept. Measure on a quiet machine.
"""

import sys

from expertflow_jax import cli


def main(invocation: cli.Invocation) -> None:
    from expertflow_jax.studies.growth import runner

    if invocation.dry_run:
        runner.plan(invocation.config)
        return
    assert invocation.workdir is not None
    words = ["python -m eval.scale", f"--config={invocation.config_path}", f"--workdir={invocation.workdir}"]
    runner.run(invocation.config, invocation.workdir, " ".join([*words, *invocation.overrides]))


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__))
