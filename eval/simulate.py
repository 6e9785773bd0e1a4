"""What would other sizes, or other ways to build the engine, cost and gain? In simulated time, without weights.

    python -m eval.simulate --config=configs/scale_cpu.py --workdir=runs/scale
    python -m eval.simulate --config=configs/ablations.py --workdir=runs/ablations
    python -m eval.simulate --config=configs/blocks.py --workdir=runs/blocks
    python -m eval.simulate --config=configs/frontier_at_scale.py --workdir=runs/frontier_at_scale
    python -m eval.simulate --config=configs/paper.py --workdir=runs/paper

The config key `study` names the question. "growth": host bookkeeping, simulated throughput and token scheduling over
sizes, by the real engine and the real schedulers; CPU time is measured, so measure on a quiet machine; writes
results.jsonl, report.md, report.html and plots/. "ablations": variants of the engine on recorded routing; nothing is
measured; writes ablations.jsonl and ablations.md. "blocks": batches that go through the layers together, on full-size
models and published GPUs; nothing is measured either; writes the same files as "growth". "paper": the set-ups of
ExpertFlow's paper beside its figures; nothing is measured; writes results.jsonl, report.md and report.html. "lossy":
bytes and speed of lossy miss policies on full-size models, without accuracy; writes results.jsonl and report.md. Rerun
the same command after a kill: finished cells are kept.
"""

import sys

from expertflow_jax import cli


def main(invocation: cli.Invocation) -> None:
    from expertflow_jax.studies.simulated import runner_of

    runner = runner_of(invocation.config)
    if invocation.dry_run:
        runner.plan(invocation.config)
        return
    assert invocation.workdir is not None
    runner.run(invocation.config, invocation.workdir, invocation.command("eval.simulate"))


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__))
