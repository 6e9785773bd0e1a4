"""What do token scheduling and expert caching do to accuracy and speed? Runs a grid of cells and reports.

    python -m eval.study --config=configs/quickstart.py --workdir=runs/quickstart

Writes results.jsonl and .csv, predictions/, report.md, report.html and plots/ into the workdir. Rerun the same
command after a kill: finished cells are kept.
"""

import sys

from expertflow_jax import cli


def main(invocation: cli.Invocation) -> None:
    import tempfile
    from pathlib import Path

    from expertflow_jax.studies.accuracy import dry_run, runner

    if invocation.dry_run:
        with tempfile.TemporaryDirectory() as scratch:
            dry_run.plan(invocation.config, invocation.workdir or Path(scratch))
        return
    assert invocation.workdir is not None
    runner.run(invocation.config, invocation.workdir, invocation.command("eval.study"))


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__))
