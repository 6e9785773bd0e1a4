"""Writes digit scenes as a benchmark: in exactly the official VQA v2 files and MMBench TSV, with a manifest.

Real annotators disagree; here a question has one right answer, so all ten annotations of it are equal.
"""

import base64
import csv
import hashlib
import io
import json
import shutil
import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from expertflow_jax.tasks import mmbench, vqa_v2
from expertflow_jax.tasks.base import Example
from expertflow_jax.tasks.digit_scenes.items import Item, make_items

VERSION = 1
SPLITS = ("train", "val")
MANIFEST = "manifest.json"
JPEG_QUALITY = 95  # without chroma subsampling: colours are asked about


def write_benchmark(data_dir: str | Path, *, train: int, val: int, seed: int) -> dict[str, Any]:
    """Writes both benchmarks, or leaves them if they are there with these counts, this seed and these checksums.

    Args:
      data_dir: gets `vqa_v2/`, `mmbench/` and manifest.json, all at once.
      train, val: questions per split in VQA v2's form; MMBench has the multiple-choice ones among them.
      seed: of scenes and questions.

    Returns:
      The manifest: version, seed, counts, and sha256 of every annotation file and of all images together.
    """
    data_dir = Path(data_dir)
    wanted = {"version": VERSION, "seed": seed, "questions": {"train": train, "val": val}}
    found = _read_manifest(data_dir)
    if (
        found is not None
        and {key: found.get(key) for key in wanted} == wanted
        and _checksums(data_dir) == found["sha256"]
    ):
        return found
    data_dir.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(prefix=f".{data_dir.name}-", dir=data_dir.parent))
    try:
        counts = {}
        for split, count in (("train", train), ("val", val)):
            items = make_items(split, count, seed)
            _write_vqa(partial, split, items)
            counts[split] = _write_mmbench(partial, split, [item for item in items if item.choices])
        manifest = wanted | {"mmbench_questions": counts, "sha256": _checksums(partial)}
        (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n")
        if data_dir.exists():
            shutil.rmtree(data_dir)
        partial.rename(data_dir)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return manifest


def _read_manifest(data_dir: Path) -> dict[str, Any] | None:
    try:
        return json.loads((data_dir / MANIFEST).read_text())
    except (OSError, ValueError):
        return None


def _checksums(data_dir: Path) -> dict[str, str]:
    found = {}
    for path in sorted([*data_dir.glob("vqa_v2/*.json"), *data_dir.glob("mmbench/*.tsv")]):
        found[str(path.relative_to(data_dir))] = hashlib.sha256(path.read_bytes()).hexdigest()
    for folder in sorted(data_dir.glob("vqa_v2/*/")):
        digest = hashlib.sha256()
        for path in sorted(folder.iterdir()):
            digest.update(path.name.encode() + path.read_bytes())
        found[str(folder.relative_to(data_dir))] = digest.hexdigest()
    return found


def _jpeg(image: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return data.getvalue()


def _write_vqa(data_dir: Path, split: str, items: Sequence[Item]) -> None:
    questions_path, annotations_path, folder = vqa_v2.official_files(data_dir, split)
    folder.mkdir(parents=True)
    questions, annotations = [], []
    for number, item in enumerate(items):
        image_id = item.scene_id + 1
        path = folder / vqa_v2.image_name(split, image_id)
        if not path.exists():
            path.write_bytes(_jpeg(item.image))
        questions.append({"image_id": image_id, "question": item.question, "question_id": number})
        answers = [
            {"answer": item.answer, "answer_confidence": "yes", "answer_id": i + 1} for i in range(vqa_v2.ANNOTATORS)
        ]
        annotations.append(
            {
                "question_type": item.question_type,
                "multiple_choice_answer": item.answer,
                "answers": answers,
                "image_id": image_id,
                "answer_type": item.answer_type,
                "question_id": number,
            }
        )
    about = {"description": "digit scenes", "version": str(VERSION)}
    head = {"info": about, "license": {"name": "CC BY 4.0"}, "data_subtype": vqa_v2.SPLITS[split]}
    kind = {"task_type": "Open-Ended", "data_type": "mscoco"}
    questions_path.write_text(json.dumps(head | kind | {"questions": questions}))
    annotations_path.write_text(json.dumps(head | {"data_type": "mscoco", "annotations": annotations}))


def _write_mmbench(data_dir: Path, split: str, items: Sequence[Item]) -> int:
    """Every rotation of each question's options; an image is stored once and then referred to. Returns questions."""
    path = mmbench.official_file(data_dir, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = ["index", "question", "hint", *mmbench.LETTERS, "answer", "category", "image", "l2-category", "split"]
    holder: dict[int, int] = {}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        for base, item in enumerate(items):
            for rotation in range(len(item.choices)):
                index = base + rotation * mmbench.ROTATION
                order = item.choices[rotation:] + item.choices[:rotation]
                options = dict(zip(mmbench.LETTERS, order, strict=False))
                stored = holder.setdefault(item.scene_id, index)
                image = base64.b64encode(_jpeg(item.image)).decode() if stored == index else str(stored)
                writer.writerow(
                    {
                        "index": index,
                        "question": item.question,
                        "hint": "",
                        **options,
                        "answer": mmbench.LETTERS[order.index(item.answer)],
                        "category": item.category,
                        "image": image,
                        "l2-category": item.question_type,
                        "split": "dev",
                    }
                )
    return len(items)


def question_only_baseline(train: Sequence[Example], val: Sequence[Example]) -> list[str]:
    """Answers of the best guesser who never looks: the commonest training answer to the question, else to its type.

    Args:
      train, val: examples of VQA v2's form.
    """
    by_question: dict[str, Counter[str]] = defaultdict(Counter)
    by_type: dict[str, Counter[str]] = defaultdict(Counter)
    for example in train:
        answer = example.target["answers"][0]
        by_question[_question(example)][answer] += 1
        by_type[example.group][answer] += 1
    return [
        (by_question.get(_question(example)) or by_type[example.group] or Counter([""])).most_common(1)[0][0]
        for example in val
    ]


def _question(example: Example) -> str:
    return next(item["text"] for item in example.messages[0]["content"] if item["type"] == "text")
