"""How fast is each cache policy, and how far from the physical limit? Runs all of them side by side.

    python -m eval.throughput --config=configs/throughput_cpu.py --workdir=runs/throughput

Under the real clock, with an emulated link: warm-up, then repeats in turns. Writes throughput.json, results.jsonl and
.csv, report.md, report.html, plots/ and trace.json (open it in ui.perfetto.dev) into the workdir. Rerun the same
command after a kill: finished cells are kept.
"""

import sys

from expertflow_jax import cli


def main(invocation: cli.Invocation) -> None:
    from expertflow_jax.studies.throughput import runner

    if invocation.dry_run:
        runner.plan(invocation.config)
        return
    assert invocation.workdir is not None
    runner.run(invocation.config, invocation.workdir, invocation.command("eval.throughput"))


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__))
