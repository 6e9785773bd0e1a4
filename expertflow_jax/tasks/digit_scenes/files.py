"""Writes digit scenes as a benchmark: in exactly the official VQA v2 files and MMBench TSV, with a manifest.

Real annotators disagree; here a question has one right answer, so all ten annotations of it are equal.
"""

import base64
import csv
import dataclasses
import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from expertflow_jax.errors import InputError
from expertflow_jax.tasks import choice_files, vqa_files
from expertflow_jax.tasks.builders.written import alone, checksums
from expertflow_jax.tasks.digit_scenes.items import Item, make_items
from expertflow_jax.tasks.multiple_choice import MMBench

VERSION = 1
SPLITS = ("train", "val")
MANIFEST = "manifest.json"
OPTIONS = choice_files.LETTERS[:4]
JPEG_QUALITY = 95  # without chroma subsampling: colours are asked about


def write_benchmark(data_dir: str | Path, *, train: int, val: int, seed: int) -> dict[str, Any]:
    """Writes both benchmarks, or leaves them if they are there with these counts, this seed and these checksums.

    Args:
      data_dir: gets `vqa_v2/`, `mmbench/` and manifest.json, all at once; what an earlier call wrote is replaced.
      train, val: questions per split in VQA v2's form; MMBench has the multiple-choice ones among them.
      seed: of scenes and questions.

    Returns:
      The manifest: version, seed, counts, sha256 of a sample of what the generator makes, of every annotation file
      and of all images together.

    Raises:
      InputError: data_dir holds files of somebody else, or counts that are not positive.
    """
    data_dir = Path(data_dir)
    if min(train, val) < 1:
        raise InputError(f"digit_scenes: train={train}, val={val} questions; want at least one of each")
    counts = {"train": train, "val": val}
    wanted: dict[str, Any] = {
        "version": VERSION,
        "seed": seed,
        "questions": counts,
        "generator": {split: _sample_digest(split, seed) for split in SPLITS},
    }
    try:
        data_dir.parent.mkdir(parents=True, exist_ok=True)
        with alone(data_dir) as (partial, old):
            present = _read_manifest(data_dir)
            if present is not None and present == wanted | {
                key: present.get(key) for key in ("mmbench_questions", "sha256")
            }:
                if checksums(data_dir) == present["sha256"]:
                    return present
            elif present is None and data_dir.exists() and (not data_dir.is_dir() or any(data_dir.iterdir())):
                raise InputError(f"{data_dir} holds files that are not this benchmark's; name an empty or a new folder")
            manifest = wanted | _write_all(partial, counts, seed)
            (partial / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
            if data_dir.exists():
                data_dir.rename(old)
            partial.rename(data_dir)
    except OSError as error:
        raise InputError(f"{data_dir}: cannot write the benchmark there ({error.strerror}); name another") from error
    return manifest


def _write_all(folder: Path, questions: Mapping[str, int], seed: int) -> dict[str, Any]:
    """Every file but the manifest; returns what the manifest says of them."""
    counts = {}
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("writing digit scenes", total=2 * len(questions))
        for split, count in questions.items():
            items = make_items(split, count, seed)
            progress.advance(bar)
            _write_vqa(folder, split, items)
            counts[split] = _write_mmbench(folder, split, [item for item in items if item.choices])
            progress.advance(bar)
    return {"mmbench_questions": counts, "sha256": checksums(folder)}


def _sample_digest(split: str, seed: int) -> str:
    """Changes when the generator makes other questions or images of the same seed."""
    digest = hashlib.sha256()
    for item in make_items(split, 32, seed):
        fields = {field.name: getattr(item, field.name) for field in dataclasses.fields(item) if field.name != "image"}
        digest.update(repr(fields).encode() + item.image.tobytes())
    return digest.hexdigest()


def _read_manifest(data_dir: Path) -> dict[str, Any] | None:
    """None where there is none of this benchmark."""
    try:
        manifest = json.loads((data_dir / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return (
        manifest
        if isinstance(manifest, dict) and {"version", "seed", "questions", "sha256"} <= manifest.keys()
        else None
    )


def _jpeg(image: np.ndarray) -> bytes:
    data = io.BytesIO()
    Image.fromarray(image).save(data, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return data.getvalue()


def _write_vqa(data_dir: Path, split: str, items: Sequence[Item]) -> None:
    folder = vqa_files.image_folder(data_dir, split)
    folder.mkdir(parents=True)
    questions, annotations = [], []
    for number, item in enumerate(items):
        image_id = item.scene_id + 1
        path = folder / vqa_files.image_name(split, image_id)
        if not path.exists():
            path.write_bytes(_jpeg(item.image))
        questions.append({"image_id": image_id, "question": item.question, "question_id": number})
        answers = [
            {"answer": item.answer, "answer_confidence": "yes", "answer_id": i + 1} for i in range(vqa_files.ANNOTATORS)
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
    head = {"info": about, "license": {"name": "CC BY 4.0"}, "data_subtype": vqa_files.SPLITS[split]}
    kind = {"task_type": "Open-Ended", "data_type": "mscoco"}
    vqa_files.questions_file(data_dir, split).write_text(
        json.dumps(head | kind | {"questions": questions}), encoding="utf-8"
    )
    vqa_files.annotations_file(data_dir, split).write_text(
        json.dumps(head | {"data_type": "mscoco", "annotations": annotations}), encoding="utf-8"
    )


def _write_mmbench(data_dir: Path, split: str, items: Sequence[Item]) -> int:
    """Every rotation of each question's options; an image is stored once and then referred to. Returns questions."""
    path = MMBench.path(data_dir, split)
    path.parent.mkdir(parents=True, exist_ok=True)
    columns = [
        "index",
        "question",
        "hint",
        *OPTIONS,
        "answer",
        "category",
        "image",
        "l2-category",
        "split",
    ]
    holder: dict[int, int] = {}
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, delimiter="\t", lineterminator="\n")
        writer.writeheader()
        for base, item in enumerate(items):
            for rotation in range(len(item.choices)):
                index = base + rotation * choice_files.ROTATION
                order = item.choices[rotation:] + item.choices[:rotation]
                options = dict(zip(OPTIONS, order, strict=False))
                stored = holder.setdefault(item.scene_id, index)
                image = base64.b64encode(_jpeg(item.image)).decode() if stored == index else str(stored)
                writer.writerow(
                    {
                        "index": index,
                        "question": item.question,
                        "hint": "",
                        **options,
                        "answer": OPTIONS[order.index(item.answer)],
                        "category": item.category,
                        "image": image,
                        "l2-category": item.question_type,
                        "split": "dev",
                    }
                )
    return len(items)
