"""VQA v2 (1612.00837): short answers to questions about COCO images, scored against ten people's (see `vqa_files`)."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expertflow_jax.tasks import vqa_files, vqa_metric
from expertflow_jax.tasks.base import Example
from expertflow_jax.tasks.official import SHORT_ANSWER, OfficialTask, json_file, short_answers
from expertflow_jax.tasks.questions import Question

MAX_NEW_TOKENS = 10


def prompt_text(question: str) -> str:
    """The prompt that short-answer evaluations of VQA share (LLaVA-1.5, lmms-eval)."""
    return question + SHORT_ANSWER


class VqaV2(OfficialTask):
    """The task. `score` is the official code's, `second_score` lmms-eval's, which processes every answer."""

    name = "vqa_v2"
    evaluator = vqa_metric.OFFICIAL
    second_evaluator = vqa_metric.LMMS_EVAL
    styles = short_answers(MAX_NEW_TOKENS, 16)

    def __init__(self, data_dir: Path, split: str, **options: Any):
        super().__init__(data_dir, vqa_files.split_name(split), **options)

    def source(self) -> str:
        return f"{vqa_files.SOURCE}, images from {vqa_files.IMAGES}"

    @property
    def scored(self) -> bool:
        return vqa_files.is_annotated(self.split)

    def question_files(self) -> list[Path]:
        files = [vqa_files.questions_file(self.data_dir, self.split)]
        return [*files, vqa_files.annotations_file(self.data_dir, self.split)] if self.scored else files

    def questions(self) -> list[Question]:
        return vqa_files.read_questions(self.data_dir, self.split)

    def image_folder(self) -> Path:
        return vqa_files.image_folder(self.data_dir, self.split)

    def score(self, example: Example, prediction: str) -> float:
        return vqa_metric.vqa_accuracy(prediction, example.target["answers"])

    def second_score(self, example: Example, prediction: str) -> float:
        return vqa_metric.lmms_vqa_accuracy(prediction, example.target["answers"])

    def submission(self, examples: Sequence[Example], predictions: Sequence[str]) -> tuple[str, bytes]:
        """What the server takes: [{"question_id", "answer"}], answers as the model gave them."""
        rows = zip(examples, predictions, strict=True)
        return json_file([{"question_id": int(example.id), "answer": answer} for example, answer in rows])
