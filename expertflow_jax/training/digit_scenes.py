"""The course of digit scenes: fresh scenes without end, and both benchmark forms at the end."""

from collections.abc import Mapping
from pathlib import Path

import ml_collections

from expertflow_jax.models.qwen3_vl_config import Qwen3VLMoeConfig
from expertflow_jax.tasks.answered import Batch
from expertflow_jax.tasks.digit_scenes.baselines import blind_accuracies
from expertflow_jax.tasks.digit_scenes.files import write_benchmark
from expertflow_jax.tasks.digit_scenes.processor_files import PROCESSOR
from expertflow_jax.tasks.digit_scenes.scenes import scans_file
from expertflow_jax.tasks.digit_scenes.stream import PATCHES_PER_SIDE, TrainStream, held_out_batches
from expertflow_jax.training.evaluation import official_accuracies


class DigitScenes:
    """See `course.Course`."""

    processor = PROCESSOR
    patches_per_side = positions_per_side = PATCHES_PER_SIDE
    title = "A small MoE vision-language model for digit scenes"
    about = """trained from scratch on scenes of handwritten digit scans (scikit-learn's
`load_digits`; UCI optical recognition of handwritten digits, CC BY 4.0). It answers the questions of
`expertflow_jax.tasks.digit_scenes` and nothing else."""

    def __init__(self, config: ml_collections.ConfigDict, model: Qwen3VLMoeConfig, data_dir: Path):
        self._config, self._model, self._data_dir = config, model, data_dir
        second = config.second_stage
        self._stream = TrainStream(
            model,
            config.seed,
            config.batch_size,
            mmbench_every=config.mmbench_every,
            dense_share=config.dense_share,
            dense_steps=config.dense_steps,
            second_stage=second.step,
            matching_share=second.matching_share,
            hard_share=second.hard_share,
            second_mmbench_every=second.mmbench_every,
        )
        official = config.official
        self.measured = f"""Official accuracies of greedy answers on the val split ({official.val:,} questions over
scans that training never saw), beside the best guess from the question alone (which has seen {official.train:,}
training questions) and always the same letter. MMBench is circular: every rotation of the options must be answered
right."""

    def inputs(self) -> Mapping[str, Path]:
        return {"scikit-learn's handwritten digits": scans_file()}

    def batch(self, step: int) -> Batch:
        return self._stream.batch(step)

    def held_out(self) -> list[tuple[str, Batch]]:
        config = self._config
        return held_out_batches(self._model, config.eval_examples, config.batch_size, config.seed)

    def accuracies(self, export: Path) -> dict[str, float]:
        config = self._config
        write_benchmark(self._data_dir, **config.official, seed=config.seed)
        answered = official_accuracies(export, self._data_dir, ("vqa_v2", "mmbench"), config.batch_size)
        return answered | blind_accuracies(self._data_dir)
