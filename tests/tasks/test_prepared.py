"""Prepared data follows every byte it was made from, is made again where it is damaged, and lies in the workdir where
the benchmark's folder cannot be written."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from official_files import annotations, encoded, questions, rows, write_mmbench, write_vqa

from expertflow_jax.errors import InputError
from expertflow_jax.tasks.builders import digests
from expertflow_jax.tasks.builders.digests import Digests
from expertflow_jax.tasks.registry import make_task

ROOT = Path(__file__).parents[2]


def vqa(data_dir: Path, **options):
    return make_task("vqa_v2", data_dir, "val", **options).examples()


def picture(data_dir: Path) -> Path:
    return data_dir / "vqa_v2" / "val2014" / "COCO_val2014_000000000009.jpg"


def test_a_replaced_image_is_read_again(tmp_path):
    write_vqa(tmp_path)
    before = vqa(tmp_path)[0].image.mean()
    path = picture(tmp_path)
    path.write_bytes(encoded(200, "JPEG"))
    assert vqa(tmp_path)[0].image.mean() != before
    path.unlink()
    with pytest.raises(InputError, match=r"000000000009\.jpg"):
        vqa(tmp_path)


def test_a_byte_in_the_middle_with_size_and_time_as_before(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_SECONDS", -1)  # whatever is remembered counts at once
    table = rows()
    table[2]["question"] = table[0]["question"] = "x" * 3_000_000
    path = write_mmbench(tmp_path, table)
    answers = [example.target["answer"] for example in make_task("mmbench", tmp_path, "val").examples()]
    status, text = path.stat(), path.read_text(encoding="utf-8")
    path.write_text(text.replace("\tno\tyes\t\t\tB\t", "\tno\tyes\t\t\tA\t"), encoding="utf-8")
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))
    assert path.stat().st_size == status.st_size
    changed = [example.target["answer"] for example in make_task("mmbench", tmp_path, "val").examples()]
    assert sum(a != b for a, b in zip(answers, changed, strict=True)) == 1


def test_settled_files_are_read_once(tmp_path, monkeypatch):
    monkeypatch.setattr(digests, "SETTLED_SECONDS", -1)
    (tmp_path / "a").write_bytes(b"x")
    first = Digests(tmp_path / "memory")
    whole = first.together([tmp_path / "a", tmp_path / "none"])
    first.remember()
    monkeypatch.setattr(digests, "_content", lambda path: "read again")
    assert Digests(tmp_path / "memory").together([tmp_path / "a", tmp_path / "none"]) == whole
    (tmp_path / "memory").write_text("[]", encoding="utf-8")
    assert Digests(tmp_path / "memory").of(tmp_path / "a") == "read again"


def junk(path: Path) -> None:
    path.write_bytes(os.urandom(path.stat().st_size))


@pytest.mark.parametrize(("ending", "damage"), [("*.array_record*", junk), ("*.array_record*", Path.unlink)])
@pytest.mark.parametrize("other", [None, "dataset_info.json", "features.json"])
def test_damaged_prepared_data_is_made_again(tmp_path, ending, damage, other):
    write_vqa(tmp_path)
    expected = vqa(tmp_path)
    for path in (tmp_path / "tfds").rglob(ending if other is None else other):
        damage(path)
    found = vqa(tmp_path)
    assert [example.id for example in found] == [example.id for example in expected]
    assert all(np.array_equal(a.image, b.image) for a, b in zip(found, expected, strict=True))


def test_prepared_elsewhere_where_the_folder_cannot_be_written(tmp_path):
    write_vqa(tmp_path / "data")
    (tmp_path / "data" / "tfds").write_text("a file in its place: nothing can be made below it", encoding="utf-8")
    assert len(vqa(tmp_path / "data", prepared_dir=tmp_path / "workdir" / "tfds")) == 3
    assert len(vqa(tmp_path / "data", prepared_dir=tmp_path / "workdir" / "tfds")) == 3
    with pytest.raises(InputError, match="cannot be written"):
        vqa(tmp_path / "data")


@pytest.mark.parametrize("empty", ["questions", "annotations"])
def test_empty_files_are_named(tmp_path, empty):
    trees = {"questions": questions(), "annotations": annotations()}
    trees[empty][empty] = []
    write_vqa(tmp_path, trees["questions"], trees["annotations"])
    with pytest.raises(InputError, match=rf"{empty}\.json: it has no {empty}"):
        vqa(tmp_path)


def test_files_are_utf8_whatever_the_locale(tmp_path):
    tree = questions()
    tree["questions"][0]["question"] = "在哪里?"
    write_vqa(tmp_path, tree)
    path = tmp_path / "vqa_v2" / "v2_OpenEnded_mscoco_val2014_questions.json"
    path.write_bytes(path.read_bytes().replace(rb"\u5728\u54ea\u91cc", "在哪里".encode()))
    assert "在哪里".encode() in path.read_bytes()
    script = "import sys; from pathlib import Path; from expertflow_jax.tasks.registry import make_task; "
    script += "t = make_task('vqa_v2', sys.argv[1], 'val').examples()[0]; assert '\\u5728' in str(t.messages)"
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT)}
    ended = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], env=os.environ | plain, capture_output=True, text=True
    )
    assert ended.returncode == 0, ended.stderr[-2000:]


def test_a_copied_benchmark_is_not_prepared_again(tmp_path):
    write_vqa(tmp_path / "data")
    vqa(tmp_path / "data")
    shutil.copytree(tmp_path / "data", tmp_path / "copy")
    vqa(tmp_path / "copy")
    made = [len(list((tmp_path / name / "tfds").glob("val-*/vqa_v2"))) for name in ("data", "copy")]
    assert made == [1, 1]
