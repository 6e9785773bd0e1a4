"""Hugging Face transformers in a process of its own interpreter, asked for one repeat at a time."""

import json
import os
import subprocess
from pathlib import Path

from expertflow_jax.errors import InputError

SCRIPT = Path(__file__).with_name("reference_process.py")


class ReferenceProcess:
    """Loads a checkpoint with transformers and times it on demand.

    Attributes:
      name: with versions, as in reports.
    """

    def __init__(self, python: str, checkpoint: Path, input_ids: list[list[int]], new_tokens: int):
        """
        Args:
          python: path of an interpreter with torch and transformers.
          input_ids: B prompts of equal length.
          new_tokens: steps of a decode window.

        Raises:
          InputError: it cannot be started, or cannot load the checkpoint.
        """
        threads = str(len(os.sched_getaffinity(0)))
        try:
            self._process = subprocess.Popen(
                [python, str(SCRIPT), str(checkpoint), threads, str(new_tokens)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
                # Threads that spin while they wait make torch 30 times slower when anything else runs on the machine.
                env={**os.environ, "OMP_WAIT_POLICY": "PASSIVE"},
            )
        except OSError as error:
            raise InputError(f"config key reference_python: {python}: {error.strerror}") from error
        self.name = str(self._ask({"input_ids": input_ids})["name"])

    def run(self, phase: str) -> float:
        """Seconds of one repeat of "prefill" or "decode"."""
        return float(self._ask({"phase": phase})["seconds"])

    def close(self) -> None:
        """Ends the process."""
        self._process.communicate(timeout=60)

    def _ask(self, question: dict) -> dict:
        assert self._process.stdin is not None  # both are pipes
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(question) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass
        answer = self._process.stdout.readline()
        if not answer:
            raise InputError(
                "config key reference_python: the process ended (its message stands above); it needs torch and "
                "transformers 5 (tests/parity/make_reference_env.sh makes such an environment)"
            )
        return json.loads(answer)
