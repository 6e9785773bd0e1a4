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
    from pathlib import Path

    from expertflow_jax.errors import InputError
    from expertflow_jax.inference.loading import load_model
    from expertflow_jax.locate import locate
    from expertflow_jax.predictor import load_predictor
    from expertflow_jax.studies.calibrate import measure_costs

    config, options = invocation.config, invocation.options
    try:
        time, height, width = (int(n) for n in options.image_grid.split(","))
    except ValueError as error:
        raise InputError(f"--image_grid: {options.image_grid!r}; write three numbers, for example 1,6,6") from error
    if invocation.dry_run:
        print(f"would time {config.model} with {config.predictor} and write {options.output}")
        return
    model = load_model(config.model, config.dtype)
    predictor = load_predictor(locate(config.predictor, "predictor"), expect_fingerprint=model.fingerprint)
    costs = measure_costs(model, predictor, (time, height, width), options.repeats)
    path = Path(options.output)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(costs.to_json(), encoding="utf-8")
    print(costs.to_json())


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__, needs_workdir=False, options=_options))
