"""easy-VQA (Victor Zhou, 2019; MIT) as official VQA v2 files: 5,000 images of coloured shapes, 48,248 questions.

    pip install easy-vqa
    python -m expertflow_jax.tasks.easy_vqa DATA

A benchmark that somebody else made, small enough for a processor: its train split becomes VQA v2's train, its published
test split VQA v2's val. Each question has one answer, so all ten annotations of it are equal. Then
`--config.data_dir=DATA --config.tasks="('vqa_v2',)"` reads it as it reads VQA v2.
"""

import io
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from PIL import Image

from expertflow_jax.errors import InputError
from expertflow_jax.files import make_folder, write_error, write_json
from expertflow_jax.tasks import vqa_files

INSTALL = "install it with: pip install easy-vqa"
JPEG_QUALITY = 95
_TYPES = ("what color", "what shape", "what is", "does the image not", "does the image", "is there", "is no", "is a")


def write_benchmark(data_dir: str | Path, limit: int | None = None) -> dict[str, int]:
    """Writes both splits into `data_dir`/vqa_v2, over what an earlier call wrote.

    Args:
      limit: images per split; None: all.

    Returns:
      Questions per split.

    Raises:
      InputError: the package easy-vqa is not installed, or the folder cannot be written to.
    """
    try:
        import easy_vqa
    except ImportError as error:
        raise InputError(f"easy_vqa: the package is not there; {INSTALL}") from error
    splits = {
        "train": (easy_vqa.get_train_questions(), easy_vqa.get_train_image_paths()),
        "val": (easy_vqa.get_test_questions(), easy_vqa.get_test_image_paths()),
    }
    return {split: _write(Path(data_dir), split, *content, limit) for split, content in splits.items()}


def _write(
    data_dir: Path, split: str, content: tuple[Sequence[Any], ...], paths: Mapping[int, str], limit: int | None
) -> int:
    chosen = sorted(paths)[:limit]
    folder = make_folder(vqa_files.image_folder(data_dir, split))
    for image_id in chosen:
        path = folder / vqa_files.image_name(split, image_id)
        try:
            path.write_bytes(_jpeg(Path(paths[image_id])))
        except OSError as error:
            raise write_error(path, error) from error
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
