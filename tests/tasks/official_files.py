"""Small files in exactly the official formats, written without the code under test."""

import base64
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

HEADER = ["index", "question", "hint", "A", "B", "C", "D", "answer", "category", "image", "l2-category", "split"]


def image(value: int) -> np.ndarray:
    """uint8 [12, 8, 3] of one colour."""
    return np.full((12, 8, 3), (value, 255 - value, 7), np.uint8)


def encoded(value: int, kind: str = "PNG") -> bytes:
    data = io.BytesIO()
    Image.fromarray(image(value)).save(data, kind)
    return data.getvalue()


def questions() -> dict[str, Any]:
    ask = [
        {"image_id": 9, "question": "What is it?", "question_id": 9001},
        {"image_id": 9, "question": "Is it a dog?", "question_id": 9000},
        {"image_id": 4, "question": "How many?", "question_id": 4002},
    ]
    head = {"info": {"year": 2017}, "license": {"url": "x"}, "data_type": "mscoco", "data_subtype": "val2014"}
    return head | {"task_type": "Open-Ended", "questions": ask}


def annotation(question_id: int, image_id: int, kind: str, answer_type: str, answers: list[str]) -> dict[str, Any]:
    return {
        "question_type": kind,
        "multiple_choice_answer": answers[0],
        "answers": [{"answer": a, "answer_confidence": "yes", "answer_id": i + 1} for i, a in enumerate(answers)],
        "image_id": image_id,
        "answer_type": answer_type,
        "question_id": question_id,
    }


def annotations() -> dict[str, Any]:
    notes = [
        annotation(4002, 4, "how many", "number", ["2"] * 8 + ["3"] * 2),
        annotation(9001, 9, "what is", "other", ["a dog"] * 6 + ["cat"] * 4),
        annotation(9000, 9, "is it a", "yes/no", ["yes"] * 10),
    ]
    return {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": "val2014", "annotations": notes}


def write_vqa(data_dir: Path, ask: dict[str, Any] | None = None, notes: dict[str, Any] | None = None) -> Path:
    folder = data_dir / "vqa_v2"
    (folder / "val2014").mkdir(parents=True, exist_ok=True)
    for image_id in (4, 9):
        (folder / "val2014" / f"COCO_val2014_{image_id:012d}.jpg").write_bytes(encoded(image_id, "JPEG"))
    (folder / "v2_OpenEnded_mscoco_val2014_questions.json").write_text(json.dumps(ask or questions()))
    (folder / "v2_mscoco_val2014_annotations.json").write_text(json.dumps(notes or annotations()))
    return folder


def rows() -> list[dict[str, str]]:
    """Two questions: one of two options, one of three with a hint; the second and later rows refer to an image."""
    picture = base64.b64encode(encoded(40)).decode()
    other = base64.b64encode(encoded(90)).decode()
    base = dict.fromkeys(HEADER, "")
    one = base | {"question": 'Is the "x" red?', "category": "color", "l2-category": "perception", "split": "dev"}
    two = base | {"question": "Which?", "hint": "Look.", "category": "shape", "l2-category": "logic", "split": "dev"}
    return [
        one | {"index": "7", "A": "yes", "B": "no", "answer": "A", "image": picture},
        two | {"index": "12", "A": "ball", "B": "cube", "C": "cone", "answer": "B", "image": other},
        one | {"index": "1000007", "A": "no", "B": "yes", "answer": "B", "image": "7"},
        two | {"index": "2000012", "A": "cone", "B": "ball", "C": "cube", "answer": "C", "image": "12"},
        two | {"index": "1000012", "A": "cube", "B": "cone", "C": "ball", "answer": "A", "image": "12"},
    ]


def write_mmbench(data_dir: Path, table: list[dict[str, str]] | None = None, header: list[str] | None = None) -> Path:
    path = data_dir / "mmbench" / "MMBench_DEV_EN.tsv"
    path.parent.mkdir(parents=True, exist_ok=True)
    names = header or HEADER
    lines = ["\t".join(names)]
    for row in table or rows():
        cells = [row[name] for name in names]
        lines.append("\t".join(f'"{c.replace(chr(34), chr(34) * 2)}"' if '"' in c else c for c in cells))
    path.write_text("\n".join(lines) + "\n")
    return path
