"""easy-VQA (Victor Zhou, 2019; MIT) as official VQA v2 files: 5,000 images of coloured shapes, 48,248 questions.

    pip install easy-vqa
    python -m expertflow_jax.tasks.easy_vqa DATA

A benchmark that somebody else made, small enough for a processor: its train split becomes VQA v2's train, its published
test split VQA v2's val. Each question has one answer, so all ten annotations of it are equal. Then
`--config.data_dir=DATA --config.tasks="('vqa_v2',)"` reads it as it reads VQA v2.
"""

import importlib.metadata
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from PIL import Image

from expertflow_jax.errors import InputError
from expertflow_jax.files import make_folder, write_error, write_json
from expertflow_jax.tasks import vqa_files
from expertflow_jax.tasks.builders.written import alone, checksums

INSTALL = "install it with: pip install easy-vqa"
VERSION = 1
MANIFEST = "easy_vqa.json"
IMAGE_PIXELS = 64  # of each side
JPEG_QUALITY = 95
ANSWERS = (
    "black",
    "blue",
    "brown",
    "gray",
    "green",
    "red",
    "teal",
    "yellow",
    "circle",
    "rectangle",
    "triangle",
    "yes",
    "no",
)
WORDS = (
    *ANSWERS,
    *["a", "color", "contain", "does", "image", "in", "is", "not", "of", "present", "shape", "the", "there", "what"],
)
_TYPES = ("what color", "what shape", "what is", "does the image not", "does the image", "is there", "is no", "is a")


def package_data() -> Path:
    """The folder of the package's questions and images; raises InputError where the package is not installed."""
    return Path(_package().__file__ or "").parent / "data"


def _package() -> ModuleType:
    try:
        import easy_vqa
    except ImportError as error:
        raise InputError(f"easy_vqa: the package is not there; {INSTALL}") from error
    return easy_vqa


def write_benchmark(data_dir: str | Path, limit: int | None = None) -> dict[str, int]:
    """Writes both splits into `data_dir`/vqa_v2, or leaves them if an earlier call wrote the same.

    Args:
      data_dir: also gets easy_vqa.json, which says what lies there.
      limit: images per split; None: all.

    Returns:
      Questions per split.

    Raises:
      InputError: the package easy-vqa is not installed, the folder holds another benchmark in VQA v2's form, or it
        cannot be written to.
    """
    package = _package()
    data_dir = make_folder(data_dir)
    folder, manifest = data_dir / "vqa_v2", data_dir / MANIFEST
    wanted = {"version": VERSION, "package": importlib.metadata.version("easy-vqa"), "images_per_split": limit}
    try:
        with alone(folder) as (partial, old):
            present = _manifest(manifest)
            if present.items() >= wanted.items() and present.get("sha256") == checksums(data_dir):
                return present["questions"]
            if not present and folder.exists() and any(folder.iterdir()):
                raise InputError(f"{folder} holds files that are not easy-VQA's; name another folder")
            splits = {
                "train": (package.get_train_questions(), package.get_train_image_paths()),
                "val": (package.get_test_questions(), package.get_test_image_paths()),
            }
            counts = {split: _write(partial, split, *content, limit) for split, content in splits.items()}
            write_json(manifest, wanted | {"questions": counts, "sha256": checksums(partial)})
            if folder.exists():
                folder.rename(old)
            (partial / folder.name).rename(folder)
    except OSError as error:
        raise write_error(folder, error) from error
    return counts


def _manifest(path: Path) -> dict[str, Any]:
    """What an earlier call wrote; empty where there is nothing, or nothing that can be read."""
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}


def _write(
    data_dir: Path, split: str, content: tuple[Sequence[Any], ...], paths: Mapping[int, str], limit: int | None
) -> int:
    chosen = sorted(paths)[:limit]
    folder = make_folder(vqa_files.image_folder(data_dir, split))
    for image_id in chosen:
        path = folder / vqa_files.image_name(split, image_id)
        path.write_bytes(_jpeg(Path(paths[image_id])))
    known = set(chosen)
    rows = [row for row in zip(*content, strict=True) if row[2] in known]
    questions = [
        {"image_id": image_id, "question": text, "question_id": number}
        for number, (text, _, image_id) in enumerate(rows)
    ]
    annotations = [
        {
            "question_type": question_type(text),
            "multiple_choice_answer": answer,
            "answers": [
                {"answer": answer, "answer_confidence": "yes", "answer_id": i + 1} for i in range(vqa_files.ANNOTATORS)
            ],
            "image_id": image_id,
            "answer_type": "yes/no" if answer in ("yes", "no") else "other",
            "question_id": number,
        }
        for number, (text, answer, image_id) in enumerate(rows)
    ]
    write_json(vqa_files.questions_file(data_dir, split), {"questions": questions}, indent=0)
    write_json(vqa_files.annotations_file(data_dir, split), {"annotations": annotations}, indent=0)
    return len(rows)


def question_type(text: str) -> str:
    """The words that a question begins with, as VQA v2 has them; "other" where they are none of the usual ones."""
    return next((start for start in _TYPES if text.startswith(start)), "other")


def _jpeg(path: Path) -> bytes:
    """Without chroma subsampling: colours are asked about."""
    content = io.BytesIO()
    with Image.open(path) as image:
        image.convert("RGB").save(content, "JPEG", quality=JPEG_QUALITY, subsampling=0)
    return content.getvalue()


def main(arguments: Sequence[str]) -> int:
    """Writes the benchmark into the folder that is named; returns the exit code."""
    if len(arguments) != 1:
        print("error: name one folder: python -m expertflow_jax.tasks.easy_vqa DATA", file=sys.stderr)
        return 2
    try:
        counts = write_benchmark(arguments[0])
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(", ".join(f"{split}: {count} questions" for split, count in counts.items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
