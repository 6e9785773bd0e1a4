"""Are the eight claims about ExpertFlow and its rivals true here? Each by an experiment with a criterion fixed before.

    python -m eval.claims --config=configs/claims.py --workdir=runs/claims

What systems do is read from the log of their events on the trained model's routing; how fast they are is simulated on
the same routing carried over to the claimed models' shapes, under this project's protocol and under the paper's.
Nothing is measured in real time. Writes results.jsonl, claims.json and claims.md. Rerun the same command after a kill:
what is finished is kept.
"""

import sys

from expertflow_jax import cli


def main(invocation: cli.Invocation) -> None:
    from expertflow_jax.studies.claims import runner

    if invocation.dry_run:
        runner.plan(invocation.config)
        return
    assert invocation.workdir is not None
    runner.run(invocation.config, invocation.workdir, invocation.command("eval.claims"))


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__))
