"""Other engines that offload, beside ours on the same card: accelerate's CPU offload and llama.cpp's expert cache.

Each runs as a process of its own, where it is installed; where it is not, its row says so. They decode with a model of
the same shape (accelerate: random weights; llama.cpp: a GGUF file that the user names) and choose their own routing, so
that their rows say what a user of theirs gets, not what another cache policy would do.
"""

import dataclasses
import functools
import json
import shlex
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path

import ml_collections

from expertflow_jax.errors import brief
from expertflow_jax.workloads.shapes import config_of, find_shape

SCRIPT = Path(__file__).with_name("accelerate_reference_process.py")
SECONDS = 3600.0  # after which a rival is given up


@dataclasses.dataclass(frozen=True)
class RivalRun:
    """What a rival gave.

    Attributes:
      rival, model: names.
      batch_size: B.
      device_bytes: what it was allowed of the card.
      tokens_per_second: of decoding; None where it did not run.
      note: its version, or why it did not run.
    """

    rival: str
    model: str
    batch_size: int
    device_bytes: int
    tokens_per_second: float | None
    note: str


def accelerate_run(python: str, name: str, batch_size: int, device_bytes: int, new_tokens: int) -> RivalRun:
    """Transformers with accelerate's device map: whole layers beyond the limit stay in host memory and are copied for
    each step.

    Args:
      python: an interpreter with torch, transformers and accelerate; empty: none.
      device_bytes: for weights on the card.
    """
    shape, result = find_shape(name), RivalRun("accelerate", name, batch_size, device_bytes, None, "not installed")
    if not python or shutil.which(python) is None:
        return result
    wanted = {
        "config": config_of(shape).to_hf(),
        "batch_size": batch_size,
        "new_tokens": new_tokens,
        "device_bytes": device_bytes,
    }
    return _measured(result, [python, str(SCRIPT), json.dumps(wanted)], _answer_of_accelerate)


def llama_run(gguf: str, options: str, name: str, device_bytes: int, new_tokens: int) -> RivalRun:
    """llama.cpp's `llama-bench` on a GGUF file of the same model.

    Args:
      gguf: the file; empty: there is none.
      options: further arguments, such as those that say how many experts stay on the card.
      device_bytes: that the options leave it; not enforced here.
    """
    result = RivalRun("llama.cpp", name, 1, device_bytes, None, "not installed")
    if shutil.which("llama-bench") is None:
        return result
    if not gguf or not Path(gguf).is_file():
        return dataclasses.replace(result, note="no GGUF file: config key gguf")
    command = ["llama-bench", "-m", gguf, "-p", "0", "-n", str(new_tokens), "-o", "json", *shlex.split(options)]
    return _measured(result, command, _answer_of_llama)


def _measured(result: RivalRun, command: Sequence[str], read: Callable[[str], tuple[float, str]]) -> RivalRun:
    try:
        run = subprocess.run(command, check=True, capture_output=True, text=True, timeout=SECONDS)
        speed, version = read(run.stdout)
    except subprocess.CalledProcessError as error:
        lines = error.stderr.strip().splitlines() or [f"exit code {error.returncode}"]
        missing = "ModuleNotFoundError" in lines[-1]
        return dataclasses.replace(result, note="not installed" if missing else f"failed: {brief(lines[-1], 200)}")
    except (OSError, subprocess.TimeoutExpired, ValueError, LookupError, TypeError) as error:
        return dataclasses.replace(result, note=f"failed: {brief(str(error), 200)}")
    return dataclasses.replace(result, tokens_per_second=speed, note=version)


def _answer_of_accelerate(text: str) -> tuple[float, str]:
    answer = json.loads(text.splitlines()[-1])
    return float(answer["tokens_per_second"]), str(answer["version"])


def _answer_of_llama(text: str) -> tuple[float, str]:
    [answer] = [entry for entry in json.loads(text) if entry["n_gen"]]
    return float(answer["avg_ts"]), f"build {answer['build_commit']}, {answer['model_type']}"


def rival_runs(config: ml_collections.ConfigDict) -> list[tuple[str, Callable[[], RivalRun]]]:
    """(label, call) of every rival that the config asks for: of none, without its key `rivals`."""
    runs: list[tuple[str, Callable[[], RivalRun]]] = []
    for name, size, gigabytes in config.get("rivals", ()):
        nbytes, tokens = int(gigabytes * 10**9), config.rival_tokens
        accelerate = functools.partial(accelerate_run, config.reference_python, name, size, nbytes, tokens)
        runs.append((f"accelerate: {name}, batch {size}", accelerate))
        if size == 1:  # llama-bench decodes one sequence
            llama = functools.partial(llama_run, config.gguf, config.llama_options, name, nbytes, tokens)
            runs.append((f"llama.cpp: {name}", llama))
    return runs
