"""MMBench: the official TSV is read row for row, choices as VLMEvalKit reads them, circular groups whole."""

import numpy as np
import pytest
from official_files import HEADER, image, rows, write_mmbench

from expertflow_jax.errors import InputError
from expertflow_jax.harness.data import TaskData
from expertflow_jax.studies.accuracy.comparison import units
from expertflow_jax.tasks.choice_rules import extract_choice
from expertflow_jax.tasks.multiple_choice import prompt_text
from expertflow_jax.tasks.registry import make_task


@pytest.fixture(scope="module")
def task(tmp_path_factory):
    data_dir = tmp_path_factory.mktemp("data")
    write_mmbench(data_dir)
    return make_task("mmbench", data_dir, "val")


def test_rows_come_back_whole_with_rotations_in_order(task):
    examples = task.examples()
    assert [e.id for e in examples] == ["7", "1000007", "12", "1000012", "2000012"]
    assert [e.cluster for e in examples] == ["7", "7", "12", "12", "12"]
    assert [e.group for e in examples] == ["color"] * 2 + ["shape"] * 3
    for example, value in zip(examples, [40, 40, 90, 90, 90], strict=True):
        np.testing.assert_array_equal(example.image, image(value))
    assert examples[0].target == {"answer": "A", "options": {"A": "yes", "B": "no"}}
    assert examples[3].messages == [
        {
            "role": "user",
            "content": [
                {
                    "type": "text",
                    "text": "Hint: Look.\nQuestion: Which?\nOptions:\nA. cube\nB. cone\nC. ball\n"
                    "Please select the correct answer from the options above. \n",
                },
                {"type": "image"},
            ],
        }
    ]


def test_questions_that_share_an_image_are_one_cluster(tmp_path):
    """By reference to its row or by the same picture again; rotations stay one question."""
    by_reference = rows()
    by_reference[1] |= {"image": "7"}
    for one in by_reference[3:]:
        one["image"] = "7"
    repeated = rows()
    repeated[1] |= {"image": repeated[0]["image"]}
    for number, table in enumerate((by_reference, repeated)):
        write_mmbench(tmp_path / str(number), table)
        task = make_task("mmbench", tmp_path / str(number), "val")
        examples = task.examples()
        assert [e.cluster for e in examples] == ["7"] * 5
        assert [e.question for e in examples] == ["7", "7", "12", "12", "12"]
        right = [e.target["answer"] for e in examples]
        assert task.aggregate(examples, [*right[:-1], "A"])["accuracy"] == 0.5
        assert len(task.examples(4)) == 2
        scores, clusters = units(TaskData(task, examples, []), np.array([1, 1, 1, 0, 1.0]))
        assert scores.tolist() == [1, 0]
        assert clusters.tolist() == ["7", "7"]


def test_prompt_without_hint():
    text = "Question: Q\nOptions:\nA. x\nPlease select the correct answer from the options above. \n"
    assert prompt_text("Q", {"A": "x"}) == text


@pytest.mark.parametrize(("limit", "kept"), [(1, 2), (2, 2), (4, 2), (5, 5), (None, 5)])
def test_limit_never_splits_a_circular_group(task, limit, kept):
    assert len(task.examples(limit)) == kept


def test_circular_accuracy_wants_every_rotation(task):
    examples = task.examples()
    right = [e.target["answer"] for e in examples]
    assert task.aggregate(examples, right)["accuracy"] == 1
    one_wrong = task.aggregate(examples, [*right[:-1], "A"])
    groups = {"category/color": 1, "category/shape": 0, "l2-category/perception": 1, "l2-category/logic": 0}
    assert one_wrong == {"accuracy": 0.5, "vanilla_accuracy": 1} | groups
    first_wrong = task.aggregate(examples[::-1], [*right[:0:-1], "B"])  # in any order of rows
    assert (first_wrong["accuracy"], first_wrong["vanilla_accuracy"]) == (0.5, 0.5)
    always_a = task.aggregate(examples, ["A"] * 5)
    assert (always_a["accuracy"], always_a["vanilla_accuracy"]) == (0, 0.5)


OPTIONS = {"A": "red ball", "B": "blue", "C": "green", "D": "no color"}


@pytest.mark.parametrize(
    ("answer", "choice"),
    [
        ("B", "B"),
        ("B.", "B"),
        ("(C)", "C"),
        ("D: no color", "D"),
        ("Answer: B", "B"),
        ("The answer is [B].", "B"),
        ("A ball that is blue all over", "B"),  # an early letter is an article
        ("B or C", None),
        ("Blue", "B"),
        ("It is GREEN", "C"),
        ("blue or green", None),
        ("b", None),
        ("", None),
        ("Z", None),
        ("blue" + " and so on" * 20, None),
        ("Cannot determine the answer B", None),
    ],
)
def test_choice(answer, choice):
    assert extract_choice(answer, OPTIONS) == choice


def change(number, **cells):
    table = rows()
    table[number] |= cells
    return table


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (change(1, answer="D"), r"line 3: answer 'D' is not among the row's options \(A, B, C\)"),
        (change(1, answer=""), "line 3: answer ''"),
        (change(4, index="x"), "line 6: index 'x' is no number"),
        (change(4, index="12"), "line 6: index 12 occurs twice"),
        (change(4, index="1000013"), "line 6: row 1000013 rotates the options of row 13, which is missing"),
        (change(2, image="8"), "line 4: its image is that of row 8, which has none"),
        (change(2, image="1000007"), "line 4: its image is that of row 1000007, which has none"),
        (change(0, image=rows()[0]["image"][:61]), "line 2: image is not base64"),
        (change(0, image=rows()[0]["image"][:60]), "line 2: image: not a readable image"),
        (change(0, image=""), "line 2: image: not a readable image"),
    ],
)
def test_malformed_rows(tmp_path, table, message):
    write_mmbench(tmp_path, table)
    with pytest.raises(InputError, match=message) as caught:
        make_task("mmbench", tmp_path, "val").examples()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("column", ["index", "question", "A", "B", "answer", "category", "image"])
def test_missing_column(tmp_path, column):
    write_mmbench(tmp_path, header=[name for name in HEADER if name != column])
    with pytest.raises(InputError, match=f"MMBench_DEV_EN.tsv: no column '{column}'; get the file from http"):
        make_task("mmbench", tmp_path, "val").examples()


def test_ragged_cut_or_binary_file(tmp_path):
    path = write_mmbench(tmp_path)
    whole = path.read_text()
    path.write_text(whole + "3\ttoo\tfew\n")
    with pytest.raises(InputError, match="line 7 has another number of cells"):
        make_task("mmbench", tmp_path, "val").examples()
    path.write_text(whole[: whole.index("red?")])
    with pytest.raises(InputError, match="not a TSV file"):
        make_task("mmbench", tmp_path, "val").examples()
    path.write_bytes(b"index\t\xff\xfe")
    with pytest.raises(InputError, match="not a TSV file"):
        make_task("mmbench", tmp_path, "val").examples()
    path.write_text("")
    with pytest.raises(InputError, match="no column 'index'"):
        make_task("mmbench", tmp_path, "val").examples()


def test_missing_file_or_split(tmp_path):
    with pytest.raises(InputError, match=r"MMBench_DEV_EN.tsv: no such file; get it from http"):
        make_task("mmbench", tmp_path, "val")
    with pytest.raises(InputError, match="no split 'testing'; known: train, val, dev, test"):
        make_task("mmbench", tmp_path, "testing")


def test_prepared_data_follows_the_file(tmp_path):
    write_mmbench(tmp_path)
    assert len(make_task("mmbench", tmp_path, "val").examples()) == 5
    write_mmbench(tmp_path, rows()[:1])
    assert len(make_task("mmbench", tmp_path, "val").examples()) == 1
    write_mmbench(tmp_path, change(0, image=""))
    with pytest.raises(InputError, match="not a readable image"):
        make_task("mmbench", tmp_path, "val").examples()


def test_an_index_of_thousands_of_digits_is_one_line(tmp_path):
    table = rows()
    table[0]["index"] = "9" * 5000
    write_mmbench(tmp_path, table)
    with pytest.raises(InputError, match=r"line 2: index '9+\.\.\.' is no number") as caught:
        make_task("mmbench", tmp_path, "dev").examples()
    assert len(str(caught.value)) < 600
