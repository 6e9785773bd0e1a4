"""Result files: what a row may hold, and that a kill at any moment neither loses nor doubles a finished cell."""

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from made_up_rows import row

from expertflow_jax.errors import InputError
from expertflow_jax.harness.rows import ROW_KEYS, CellRow, cell_id
from expertflow_jax.studies.accuracy import result_files as results
from expertflow_jax.studies.accuracy.result_files import ResultWriter, read_rows

CELLS = 40


def small_row(index: int, **changes) -> CellRow:
    return row(seed=index, num_examples=3, flips=index, **changes)


def some_predictions(index: int) -> list[dict]:
    keys = {"target": "7", "score": 1.0, "reference_prediction": "7"}
    return [{"id": str(i), "prediction": f"é{index}", **keys} for i in range(3)]


def write_all(workdir: Path) -> None:
    """What a study does: whatever is not finished yet."""
    with ResultWriter(workdir, {"cells": CELLS}, {"python": "3"}) as writer:
        print("open", flush=True)
        for index in range(CELLS):
            if small_row(index).cell_id not in writer.finished_cells():
                arrays = {"first_logits": np.full((3, 50), index, np.float32)}
                writer.add(small_row(index), some_predictions(index), arrays)
        writer.finish()
    print("finished", flush=True)


def start_writer(workdir: Path) -> subprocess.Popen:
    roots = os.pathsep.join([str(Path(__file__).parents[3]), str(Path(__file__).parent)])
    return subprocess.Popen(
        [sys.executable, __file__, str(workdir)],
        env={**os.environ, "PYTHONPATH": roots, "JAX_PLATFORMS": "cpu"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_kills_at_random_moments_lose_and_double_nothing(tmp_path):
    write_all(tmp_path / "undisturbed")
    workdir, moments = tmp_path / "killed", random.Random(0)
    before: list[CellRow] = []
    for _ in range(3):
        process = start_writer(workdir)
        assert process.stdout is not None
        assert process.stdout.readline() == "open\n"
        time.sleep(moments.uniform(0.0, 0.15))
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
        after = read_rows(workdir)
        assert after[: len(before)] == before
        for finished in after:  # a row that can be read has all its files
            assert len(results.read_predictions(workdir, finished)) == 3
        before = after
    write_all(workdir)
    for name in ("results.jsonl", "results.csv", "config.json", "environment.json"):
        assert (workdir / name).read_bytes() == (tmp_path / "undisturbed" / name).read_bytes()
    assert not list(workdir.rglob("*.partial"))
    with ResultWriter(workdir, {"cells": CELLS}) as writer:
        for index in range(CELLS):
            name = small_row(index).cell_id
            assert writer.predictions(name) == some_predictions(index)
            assert (writer.arrays(name)["first_logits"] == index).all()


@pytest.mark.parametrize("cut", [1, 2, 40, 300])
def test_a_torn_line_is_its_cell_not_finished(tmp_path, cut):
    with ResultWriter(tmp_path, {}) as writer:
        for index in range(3):
            writer.add(small_row(index), some_predictions(index))
    path = tmp_path / "results.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    assert [found.seed for found in read_rows(tmp_path)] == [0, 1]
    assert path.read_bytes() == whole[:-cut]  # reading repairs nothing
    with ResultWriter(tmp_path, {}) as writer:
        assert writer.finished_cells() == {small_row(0).cell_id, small_row(1).cell_id}
        writer.add(small_row(2), some_predictions(2))
    assert path.read_bytes() == whole


def test_a_second_writer_is_refused(tmp_path):
    with ResultWriter(tmp_path, {}), pytest.raises(InputError, match="another process is writing"):
        ResultWriter(tmp_path, {})
    ResultWriter(tmp_path, {}).close()


def test_the_lock_goes_with_its_process(tmp_path):
    process = start_writer(tmp_path)
    assert process.stdout is not None
    assert process.stdout.readline() == "open\n"
    process.kill()
    process.communicate()
    ResultWriter(tmp_path, {"cells": CELLS}).close()


def test_another_config_is_refused_and_named(tmp_path):
    ResultWriter(tmp_path, {"model": {"path": "a"}, "seeds": (0, 1)}).close()
    ResultWriter(tmp_path, {"seeds": [0, 1], "model": {"path": "a"}}).close()
    with pytest.raises(InputError, match=r"model\.path: 'a', now 'b'"):
        ResultWriter(tmp_path, {"model": {"path": "b"}, "seeds": [0, 1]})
    ResultWriter(tmp_path, {"model": {"path": "a"}, "seeds": [0, 1]}).close()  # the refused one left no lock


def test_rows_without_their_config_are_refused(tmp_path):
    (tmp_path / "results.jsonl").write_text("")
    with pytest.raises(InputError, match=r"no config\.json"):
        ResultWriter(tmp_path, {})


def test_a_later_environment_is_added_not_put_in_place(tmp_path):
    for version in ("1", "2", "2"):
        ResultWriter(tmp_path, {}, {"jax": version}).close()
    kept = json.loads((tmp_path / "environment.json").read_text())
    assert kept == {"jax": "1", "resumed_under": [["jax: '1', now '2'"]]}


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda line: line.replace('"hits"', '"hitz"'), "'hits'"),
        (lambda line: line[: len(line) // 2], "line 2"),
        (lambda line: "[]", "line 2"),
        (lambda line: json.dumps(small_row(0).to_json()), "second row"),
    ],
)
def test_damaged_rows_are_named_by_line(tmp_path, damage, says):
    with ResultWriter(tmp_path, {}) as writer:
        for index in range(3):
            writer.add(small_row(index), some_predictions(index))
    path = tmp_path / "results.jsonl"
    lines = path.read_text().splitlines()
    lines[1] = damage(lines[1])
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match=says):
        read_rows(tmp_path)


def test_rows_survive_the_trip_through_the_file(tmp_path):
    rows = [small_row(0), small_row(1, hit_rate=None, accuracy=np.float32(0.5), hits=np.int64(2), lossless=False)]
    with ResultWriter(tmp_path, {}) as writer:
        for index, one in enumerate(rows):
            writer.add(one, some_predictions(index))
        writer.finish()
        written = writer.rows
    assert read_rows(tmp_path) == written
    assert [dataclasses.replace(one, predictions_sha256=None, arrays_sha256=None) for one in written] == rows
    header, *lines = (tmp_path / "results.csv").read_text().splitlines()
    assert header.split(",") == list(ROW_KEYS)
    assert len(lines) == 2


def test_a_cell_is_added_once_and_whole(tmp_path):
    with ResultWriter(tmp_path, {}) as writer:
        writer.add(small_row(0), some_predictions(0))
        with pytest.raises(ValueError, match="finished already"):
            writer.add(small_row(0), some_predictions(0))
        with pytest.raises(ValueError, match="2 predictions of 3"):
            writer.add(small_row(1), some_predictions(1)[:2])
        with pytest.raises(ValueError, match="'target'"):
            writer.add(small_row(1), [{"id": "0", "prediction": "7"}])
        assert len(writer.rows) == 1
    assert len(read_rows(tmp_path)) == 1


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.write_bytes(b""), "not the predictions that its row was made of"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "not the predictions"),
        (lambda path: path.write_text(path.read_text().replace("1.0", "0.0")), "not the predictions"),
        (lambda path: path.unlink(), "no such file, though the cell has a row"),
    ],
)
def test_a_row_whose_predictions_are_not_its_own_is_refused(tmp_path, damage, says):
    with ResultWriter(tmp_path, {}) as writer:
        writer.add(small_row(0), some_predictions(0))
    damage(tmp_path / "predictions" / f"{small_row(0).cell_id}.jsonl")
    with pytest.raises(InputError, match=f"{says}.*delete the row of its cell"):
        ResultWriter(tmp_path, {})
    (tmp_path / "results.jsonl").write_text("")  # the remedy
    with ResultWriter(tmp_path, {}) as writer:
        writer.add(small_row(0), some_predictions(0))


@pytest.mark.parametrize("keep", [0, 1, 60, 200])
def test_damaged_arrays_are_one_line_with_the_remedy(tmp_path, keep):
    with ResultWriter(tmp_path, {}) as writer:
        writer.add(small_row(0), some_predictions(0), {"first_logits": np.zeros((3, 50), np.float32)})
        path = tmp_path / "arrays" / f"{small_row(0).cell_id}.npz"
        path.write_bytes(path.read_bytes()[:keep])
        with pytest.raises(InputError, match=r"npz: not the arrays .*delete the row of its cell"):
            writer.arrays(small_row(0).cell_id)
        path.unlink()
        with pytest.raises(InputError, match=r"npz: no such file.*delete the row of its cell"):
            writer.arrays(small_row(0).cell_id)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"accuracy": 1.5}, "accuracy is 1.5, outside"),
        ({"accuracy_delta": -1.5}, "accuracy_delta"),
        ({"tokens_per_second": float("nan")}, "finite"),
        ({"flips": 0.5}, "whole number"),
        ({"flips": True}, "finite number"),
        ({"lossless": 1}, "true or false"),
        ({"task": ""}, "want text"),
        ({"misses": None}, "misses"),
    ],
)
def test_a_row_that_cannot_be_is_refused(changes, says):
    with pytest.raises(InputError, match=says):
        row(**changes)


def test_cell_ids_tell_cells_apart():
    first, second = {"policy": "a_b", "scheduler": "c"}, {"policy": "a", "scheduler": "b_c"}
    assert cell_id(first) != cell_id(second)
    long = cell_id({"policy": "x/../y " * 60, "seed": 1})
    assert "/" not in long
    assert len(long) <= 120


if __name__ == "__main__":
    write_all(Path(sys.argv[1]))


def test_arrays_of_another_cell_are_found_when_the_folder_is_opened(tmp_path):
    with ResultWriter(tmp_path, {}) as writer:
        for index in range(2):
            writer.add(small_row(index), some_predictions(index), {"first_logits": np.full((3, 50), index, np.float32)})
    first, second = (tmp_path / "arrays" / f"{small_row(index).cell_id}.npz" for index in range(2))
    first.write_bytes(second.read_bytes())
    with pytest.raises(InputError, match=rf"{first.name}: not the arrays that its row was made of") as caught:
        ResultWriter(tmp_path, {})
    assert "\n" not in str(caught.value)
