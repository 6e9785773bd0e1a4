"""Host bookkeeping, simulated throughput and token scheduling over sizes: `eval.simulate` with this config.

python -m eval.scale --config=configs/scale_cpu.py --workdir=runs/scale
"""

import sys

from eval.simulate import main
from expertflow_jax import cli

if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__))
