"""A rerun in a study's folder of which any one file is damaged: it goes on, or says in one line which file it is.

The cases run in a child process whose memory is limited, so that a file without an end is an error.
"""

import contextlib
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

GIBIBYTE = 1 << 30
SECONDS = 20  # of processor time, of one case
EXAMPLES = 60  # of each kind
CONFIG, ENVIRONMENT = {"batch_size": 8, "grids": {"lossy": ["drop"]}, "seeds": [0]}, {"python": "3", "commit": "a"}
COSTS = Path(__file__).parents[3] / "configs" / "costs" / "digit_scenes_moe_cpu.json"
NUMBERS = st.sampled_from([0, 1, 2, 3, 10**7, 10**12, 2**31, 2**63, 10**400, -1, 0.5, 1e-300, 1e300]).map(json.dumps)
NUMBERS |= st.sampled_from(["NaN", "Infinity", "1e999", "null", "true", "[]", "{}", "9" * 5000])
STRINGS = st.sampled_from(
    ["", "a\nb", "\0", "\ud800", "../../etc", "x" * 300, "x" * 100_000, "[bold]", "|", "$", "resident"]
)
VALUES = NUMBERS | STRINGS.map(json.dumps)
CONTENTS = st.one_of(
    st.sampled_from([b"", b"\n", b"\0", b"\0" * 4096, b"\xff\xfe", b"\xc3(\n", b"[" * 100_000, b'{"a":' * 100_000]),
    st.sampled_from([b"null", b"3", b'"text"', b"[]", b"{}", b"[[]]", b'{"a": 1}\n', b'{"resumed_under": 3}']),
    st.sampled_from([b'{"resumed_under": [3]}', b'{"resumed_under": [["commit: \\ud800\\n"]]}', b"NaN"]),
    st.sampled_from([b'{"a": ' + b"[" * 400 + b"]" * 400 + b"}", b'{"a": ' + b"[" * 5000 + b"]" * 5000 + b"}"]),
    st.binary(max_size=40),
    VALUES.map(str.encode),
)


def rerun(folder: Path) -> None:
    """What `eval.study` does in a folder where all cells are finished."""
    from expertflow_jax.harness.inputs import claim_inputs
    from expertflow_jax.studies.accuracy.comparison import Outcome
    from expertflow_jax.studies.accuracy.report import write_report
    from expertflow_jax.studies.accuracy.result_files import ResultWriter

    with ResultWriter(folder, CONFIG, ENVIRONMENT) as writer:
        claim_inputs(writer, {"costs": COSTS})
        for one in writer.rows:
            if one.policy == "resident":
                Outcome.read(writer.path, one)
        if not writer.rows:  # the study would run them again
            return
        writer.finish()
    write_report(folder)


def finished(folder: Path) -> None:
    """A study's folder as its writer makes it."""
    from made_up_rows import cached, row

    from expertflow_jax.harness.inputs import claim_inputs
    from expertflow_jax.studies.accuracy.comparison import Outcome
    from expertflow_jax.studies.accuracy.groups import GroupScores
    from expertflow_jax.studies.accuracy.result_files import ResultWriter

    small: dict[str, Any] = {"num_examples": 3, "units": 3}
    cells = [row(**small), *(cached("expertflow", f, miss_policy="drop", **small) for f in (0.25, 0.5))]
    answers = [{"id": str(i), "prediction": "é", "target": "7", "score": 1.0} for i in range(3)]
    arrays = Outcome(
        ["é"] * 3, np.ones(3), np.ones((3, 50), np.float32), np.ones((3, 16), np.uint8), np.ones((4, 2, 8), bool)
    ).arrays()
    with ResultWriter(folder, CONFIG, ENVIRONMENT) as writer:
        claim_inputs(writer, {"costs": COSTS})
        for cell in cells:
            lines = [answer | {"reference_prediction": "é"} for answer in answers]
            scores = {"accuracy": 1.0, "kind/a": 1.0}
            groups = GroupScores(cell.cell_id, scores, scores, {"kind/a": 3}, {"kind/a": 1})
            writer.add(cell, lines, arrays if cell.policy == "resident" else None, groups)
    rerun(folder)


def attempt(folder: Path, file: Path) -> None:
    """A rerun; only InputError may come, in one line that names the damaged file, soon."""
    from expertflow_jax.errors import InputError

    start, message = time.process_time(), None
    signal.alarm(3 * SECONDS)  # ends this process where a rerun hangs
    try:
        rerun(folder)
    except InputError as error:
        message = str(error)
    signal.alarm(0)
    assert time.process_time() - start < SECONDS
    if message is not None:
        assert "\n" not in message
        assert len(message) < 3000
        assert file.name in message, message
        assert "; " in message, f"no remedy: {message}"


@contextlib.contextmanager
def copied():
    """A finished folder to be damaged."""
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place) / "run"
        shutil.copytree(os.environ["FINISHED_STUDY"], folder)
        yield folder


def names() -> list[str]:
    """Files that a rerun may read or write over."""
    whole = Path(os.environ["FINISHED_STUDY"])
    files = [str(path.relative_to(whole)) for path in whole.rglob("*") if path.is_file() and path.suffix != ".png"]
    return sorted(files)


def instead_of(file: Path, kind: str) -> None:
    file.unlink()
    if kind == "folder":
        file.mkdir()
    elif kind == "dangling":
        file.symlink_to(file.parent / "nowhere" / "at_all")
    elif kind == "loop":
        file.symlink_to(file)
    elif kind == "endless":
        file.symlink_to("/dev/zero")
    elif kind == "pipe":
        os.mkfifo(file)
    elif kind == "list of arrays":
        np.save(file.with_suffix(".npy"), np.zeros(3))
        file.with_suffix(".npy").rename(file)


KINDS = ("nothing", "folder", "dangling", "loop", "endless", "pipe", "list of arrays")
SETTINGS = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


def replaced() -> None:
    """Every file by every kind of something else."""
    for name in names():
        for kind in KINDS:
            with copied() as folder:
                instead_of(folder / name, kind)
                attempt(folder, folder / name)


@SETTINGS
@given(st.data())
def contents(data):
    with copied() as folder:
        file = folder / data.draw(st.sampled_from(names()))
        before = file.read_bytes()
        kind = data.draw(st.sampled_from(["new", "cut", "inserted", "flipped"]))
        place = data.draw(st.integers(0, len(before)))
        if kind == "new":
            after = data.draw(CONTENTS)
        elif kind == "cut":
            after = before[:place]
        elif kind == "inserted":
            after = before[:place] + data.draw(CONTENTS) + before[place:]
        else:
            after = before[:place] + data.draw(st.binary(min_size=1, max_size=4)) + before[place + 4 :]
        file.write_bytes(after)
        attempt(folder, file)


@SETTINGS
@given(st.data())
def lines(data):
    """A file of lines or of JSON with one value edited, or with a line doubled, moved or foreign."""
    with copied() as folder:
        texts = [name for name in names() if name.endswith((".json", ".jsonl"))]
        file = folder / data.draw(st.sampled_from(texts + ["results.jsonl"] * len(texts)))
        text = file.read_text(encoding="utf-8")
        kind = data.draw(st.sampled_from(["edited", "edited", "edited", "doubled", "foreign"]))
        every = text.splitlines(keepends=True) or [""]
        if kind == "edited":
            values = list(re.finditer(r'(?<=: )("[^"]*"|[-0-9.e+]+|true|false|null)', text))
            if values:
                value = data.draw(st.sampled_from(values))
                text = text[: value.start()] + data.draw(VALUES) + text[value.end() :]
        elif kind == "doubled":
            every.insert(data.draw(st.integers(0, len(every))), data.draw(st.sampled_from(every)))
            text = "".join(every)
        else:
            foreign = data.draw(CONTENTS.map(lambda content: content.decode("latin1") + "\n"))
            every.insert(data.draw(st.integers(0, len(every))), foreign)
            text = "".join(every)
        file.write_text(text, encoding="utf-8")
        attempt(folder, file)


@pytest.fixture(scope="module")
def study(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("study") / "run"
    finished(folder)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["replaced", "contents", "lines"])
def test_one_line_or_a_report(study, kind):
    environment = {**os.environ, "FINISHED_STUDY": str(study), "JAX_PLATFORMS": "cpu"}
    ended = subprocess.run(
        [sys.executable, __file__, kind], capture_output=True, text=True, timeout=400, env=environment
    )
    assert ended.returncode == 0, ended.stderr[-4000:]


if __name__ == "__main__":
    with copied() as unharmed:
        rerun(unharmed)  # takes the address space that libraries reserve
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIBIBYTE, used + GIBIBYTE))
    {"replaced": replaced, "contents": contents, "lines": lines}[sys.argv[1]]()
