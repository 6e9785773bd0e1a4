"""What is a model's routing like? Signatures by kind of prompt, image against text tokens, and reuse of experts.

    python -m eval.routing --config=configs/routing.py --workdir=runs/routing

Records the routing of prompts of the config's tasks with all experts at hand, then compares: signatures within and
across kinds of prompts (2603.11114) with their baselines, how far image and text tokens spread over the experts, and
working sets and reuse distances with the hit rates that they foretell. Writes traces/, routing.json, report.md,
report.html and plots/. Nothing is measured in time. Rerun the same command after a kill: finished traces are kept.
"""

import sys

from expertflow_jax import cli


def main(invocation: cli.Invocation) -> None:
    from expertflow_jax.studies.routing import runner

    if invocation.dry_run:
        runner.plan(invocation.config)
        return
    assert invocation.workdir is not None
    runner.run(invocation.config, invocation.workdir, invocation.command("eval.routing"))


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__))
