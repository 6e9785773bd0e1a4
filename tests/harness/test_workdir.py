"""A workdir is whole after a kill, one process's at a time, and says in one line why it cannot be used."""

import json
import os
import subprocess
import sys

import pytest

from expertflow_jax.errors import InputError
from expertflow_jax.files import write_atomically
from expertflow_jax.harness.inputs import claim_inputs
from expertflow_jax.harness.row_file import with_keys
from expertflow_jax.harness.workdir import Workdir

ROWS = [{"cell": 0, "x": 1.5}, {"cell": 1, "x": 2.5}, {"cell": 2, "x": 3.5}]


def append_missing(workdir, upto: int = len(ROWS)) -> bytes:
    with Workdir(workdir, {"seed": 0}) as place:
        file = place.row_file("results.jsonl", with_keys("cell"))
        for row in ROWS[len(file.rows) : upto]:
            file.append(row)
        return file.path.read_bytes()


@pytest.mark.parametrize("cut", [1, 2, 7, 17])
def test_a_row_cut_anywhere_is_run_again_at_every_resume(tmp_path, cut):
    whole = append_missing(tmp_path)
    for _ in range(3):
        (tmp_path / "results.jsonl").write_bytes(whole[:-cut])
        assert append_missing(tmp_path, upto=2) == whole[: whole.rindex(b"\n", 0, -1) + 1]
        assert append_missing(tmp_path) == whole


def test_rows_that_belong_together_replace_the_file_at_once(tmp_path):
    with Workdir(tmp_path, {}) as place:
        file = place.row_file("results.jsonl")
        file.append(ROWS[0])
        file.append_together(ROWS[1:])
        assert [json.loads(line) for line in file.path.read_text().splitlines()] == ROWS == file.rows
        file.keep(lambda row: row["cell"] != 1)
        assert place.row_file("results.jsonl").rows == [ROWS[0], ROWS[2]]


def test_what_a_kill_left_is_removed_and_other_writers_folders_stay(tmp_path):
    append_missing(tmp_path)
    for name in (".data.partial/vqa_v2", "plots", "predictions"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("plots/a.png.partial", "predictions/x.jsonl.partial", "report.md.partial"):
        (tmp_path / name).write_text("half")
    append_missing(tmp_path)
    assert not [path for path in tmp_path.rglob("*.partial") if path.is_file()]
    assert (tmp_path / ".data.partial" / "vqa_v2").is_dir()


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("results.jsonl", '{"cell": 0}\n' + "[" * 100_000 + "\n", "line 2: nested too deeply"),
        ("results.jsonl", "[]\n", "line 1: not a JSON object"),
        ("results.jsonl", '{"x": 0}\n', "line 1: no 'cell'"),
        ("results.jsonl", "\ufffd{\n", "line 1"),
        ("config.json", "[" * 100_000, "not JSON"),
        ("config.json", "", "not JSON"),
        ("environment.json", "[]", "not a JSON object"),
        ("environment.json", '{"a"', "not JSON"),
    ],
)
def test_damage_is_one_line_that_names_the_file(tmp_path, name, content, says):
    append_missing(tmp_path)
    (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=says) as raised, Workdir(tmp_path, {"seed": 0}, {"python": "3"}) as place:
        place.row_file("results.jsonl", with_keys("cell"))
    assert name in str(raised.value)
    assert "\n" not in str(raised.value)


def test_checkpoints_without_their_config_are_refused(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    with pytest.raises(InputError, match=r"checkpoints but no config\.json"):
        Workdir(tmp_path, {})


@pytest.mark.parametrize("place", ["/proc/x", "{tmp}/file/below", "{tmp}/dangling", "{tmp}/" + "n" * 300])
def test_impossible_places_are_one_line(tmp_path, place):
    (tmp_path / "file").write_text("")
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere" / "at_all")
    with pytest.raises(InputError, match=r"cannot be written \(.*\); "):
        Workdir(place.format(tmp=tmp_path), {})


LIMITED = """
import resource, sys
from expertflow_jax.errors import InputError
from expertflow_jax.files import write_atomically
from expertflow_jax.harness.workdir import Workdir
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with Workdir(sys.argv[1], {}) as place:
    rows = place.row_file("results.jsonl")
    for write in (lambda: write_atomically(place.path / "big", b"x" * 5000),
                  lambda: rows.append({"x": "y" * 5000}),
                  lambda: rows.append_together([{"x": "y" * 5000}])):
        try:
            write()
        except InputError as error:
            print(error)
"""


def test_a_limit_of_file_size_leaves_nothing_half_written(tmp_path):
    """As on a full disk: what was there stays whole, and the message has the reason and the remedy."""
    workdir = tmp_path / "run"
    with Workdir(workdir, {}) as place:
        place.row_file("results.jsonl").append(ROWS[0])
    output = subprocess.run([sys.executable, "-c", LIMITED, str(workdir)], capture_output=True, text=True, check=True)
    assert output.stdout.count("(File too large); raise the limit of a file's size (ulimit -f) and rerun\n") == 3
    assert (workdir / "results.jsonl").read_text() == json.dumps(ROWS[0]) + "\n"
    assert sorted(path.name for path in workdir.iterdir()) == [".lock", "config.json", "results.jsonl"]


def test_a_failed_write_leaves_the_earlier_file(tmp_path):
    path = tmp_path / "file"
    write_atomically(path, "before")
    with pytest.raises(TypeError):
        write_atomically(path, 3)  # type: ignore[arg-type]
    assert path.read_text() == "before"
    assert [p.name for p in tmp_path.iterdir()] == ["file"]


def claim(workdir, paths) -> None:
    with Workdir(workdir, {}) as place:
        claim_inputs(place, paths)
        if not place.row_file("results.jsonl").rows:
            place.row_file("results.jsonl").append(ROWS[0])


def test_rows_of_other_inputs_are_refused_by_name(tmp_path):
    weights, images = tmp_path / "model.safetensors", tmp_path / "images"
    weights.write_bytes(b"weights")
    images.mkdir()
    (images / "a.jpg").write_bytes(b"picture")
    paths = {"model file model.safetensors": weights, "data_dir file images": images}
    claim(tmp_path / "run", paths)
    claim(tmp_path / "run", paths)
    for path, name in ((weights, "model file model.safetensors"), (images / "a.jpg", "data_dir file images")):
        before, times = path.read_bytes(), path.stat()
        path.write_bytes(before[::-1])  # of the same size, at the same time
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        with pytest.raises(InputError, match=f"other inputs: {name} is not what it was; put it back"):
            claim(tmp_path / "run", paths)
        path.write_bytes(before)
        claim(tmp_path / "run", paths)
    (images / "b.jpg").write_bytes(b"more")
    with pytest.raises(InputError, match="other inputs: data_dir file images"):
        claim(tmp_path / "run", paths)


def test_a_damaged_cache_of_digests_costs_only_time(tmp_path):
    (tmp_path / "file").write_text("x")
    for damage in ("", "[]", '{"%s": 3}' % (tmp_path / "file"), "[" * 100_000):
        claim(tmp_path / "run", {"costs": tmp_path / "file"})
        (tmp_path / "run" / "digests.json").write_text(damage)
    claim(tmp_path / "run", {"costs": tmp_path / "file"})


def test_rows_without_their_inputs_are_refused(tmp_path):
    append_missing(tmp_path)
    with Workdir(tmp_path, {"seed": 0}) as place, pytest.raises(InputError, match=r"rows but no inputs\.json"):
        claim_inputs(place, {})


@pytest.mark.parametrize(
    ("first", "second", "line"),
    [
        ({"commit": "a", "processors": 1}, {"commit": "b", "processors": 2}, "commit: 'a', now 'b'"),
        ({"devices": ["H100"]}, {"devices": ["A100"]}, "devices: ['H100'], now ['A100']"),
        (
            {"autotuning": {"file": "a", "digest": "1"}},
            {"autotuning": {"file": "b", "digest": "2"}},
            "autotuning.file: 'a', now 'b'",
        ),
    ],
)
def test_another_version_device_or_choice_of_tiles_is_warned_of(tmp_path, capsys, first, second, line):
    for environment in (first, second):
        Workdir(tmp_path, {}, environment).close()
    expected = f"warning: {tmp_path} was begun under another version or device: {line}\n"
    assert capsys.readouterr().err == expected


def test_choices_that_were_added_to_are_no_others(tmp_path, capsys):
    for digest in ("1", "2"):
        Workdir(tmp_path, {}, {"autotuning": {"file": "a", "digest": digest}}).close()
    assert capsys.readouterr().err == ""
