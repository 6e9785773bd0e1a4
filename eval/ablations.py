"""What would the engine gain from being built otherwise? The same as `eval.simulate` with this config:

python -m eval.ablations --config=configs/ablations.py --workdir=runs/ablations
"""

import sys

from eval.simulate import main
from expertflow_jax import cli

if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__))
