"""Records how long each stage of a study's model takes on this machine, for the virtual clock.

python -m eval.calibrate --config=configs/quickstart.py --output=configs/costs/digit_scenes_moe_cpu.json
"""

import argparse
import sys

from expertflow_jax import cli


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--output", required=True, metavar="FILE", help="JSON file to write")
    parser.add_argument("--image_grid", default="1,6,6", help="patches of a typical image: time,height,width")
    parser.add_argument("--repeats", type=int, default=20, help="calls per measurement; the median counts")


def main(invocation: cli.Invocation) -> None:
    from expertflow_jax.studies import calibrate

    config, options = invocation.config, invocation.options
    grid = calibrate.parse_grid(options.image_grid)
    if invocation.dry_run:
        print(f"would time {config.model} with {config.predictor} and write {options.output}")
        return
    calibrate.run(config, options.output, grid, options.repeats)


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__, needs_workdir=False, options=_options))
