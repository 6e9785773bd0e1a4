#!/usr/bin/env bash
# Makes .venv-reference, where tests/parity runs Hugging Face's code: torch has no place in the package's environment.
#   bash tests/parity/make_reference_env.sh PYTHON3.11
set -euo pipefail
python=${1:?"usage: $0 PYTHON3.11"}
cd "$(dirname "$0")/../.."

trap 'rm -rf .venv-reference' ERR INT TERM # half an environment would look like a whole one
"$python" -m venv .venv-reference
.venv-reference/bin/python -m pip install --quiet --disable-pip-version-check \
  "torch==2.13.0" "transformers>=5,<6" pillow numpy safetensors jinja2
