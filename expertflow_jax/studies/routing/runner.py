"""Records the routing of a config's prompts, measures it and writes the report. See configs/routing.py."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import ml_collections
import numpy as np
from rich.console import Console

from expertflow_jax import checkpoints
from expertflow_jax.checkpoints.load import read_config
from expertflow_jax.files import write_json
from expertflow_jax.harness.cells import number
from expertflow_jax.harness.inputs import claimed_workdir, model_files, split_files
from expertflow_jax.locate import locate
from expertflow_jax.predictor.examples import benchmark_examples, documents_cut
from expertflow_jax.predictor.recording import Recorder, record
from expertflow_jax.processing import Processor, end_token_ids
from expertflow_jax.processing.batching import Prompt
from expertflow_jax.routing.fingerprint import fingerprint_of
from expertflow_jax.routing.trace import RoutingTrace
from expertflow_jax.routing.trace_set import TraceSet
from expertflow_jax.studies.routing.measure import (
    Sample,
    common_kinds,
    modality_measures,
    reuse_measures,
    similarity_measures,
)
from expertflow_jax.tasks.base import Example
from expertflow_jax.tasks.encoding import encode_example
from expertflow_jax.tasks.provided import data_folder

MEASURES = "routing.json"


def _checked(config: ml_collections.ConfigDict) -> dict[str, int]:
    """How many prompts of each task. Raises InputError for values that cannot be."""
    counts = {task: count for task, count in config.sequences.items() if count}
    number(10, unit="of all tasks together")("config key sequences", sum(counts.values()))
    number(5)("config key fewest", config.fewest)
    number(20)("config key permutations", config.permutations)
    number(1)("config key batch_size", config.batch_size)
    for size in config.cache_sizes:
        number(1)("config key cache_sizes", size)
    return counts


def plan(config: ml_collections.ConfigDict) -> None:
    """Prints what would be recorded; runs nothing."""
    counts = _checked(config)
    text = read_config(locate(config.model)).text
    console = Console(soft_wrap=True)
    console.print(f"model    {config.model}: {len(text.moe_layers)} MoE layers of {text.num_experts} experts")
    for task, count in counts.items():
        console.print(f"prompts  {count:,} of {task}, split {config.split}")
    console.print("The whole model is loaded in float32, with all of its experts; nothing is measured in time.")


def run(config: ml_collections.ConfigDict, workdir: Path, command: str) -> dict[str, Any]:
    """Records what is not recorded yet, writes routing.json and the report, returns the measures.

    Raises:
      InputError: bad config or files, too few prompts, or a workdir of another config.
    """
    from expertflow_jax.studies.routing.report import write_report

    counts = _checked(config)
    with claimed_workdir(
        workdir, config, model_files(config.model) | split_files(config, [(task, config.split) for task in counts])
    ):
        sample = _sample(config, counts, workdir)
        console = Console(width=118)
        dealt = {"permutations": config.permutations, "seed": config.seed}
        measures = {
            "similarity": {
                name: similarity_measures(sample, name, fewest=config.fewest, **dealt) for name in sample.labels
            },
            "modality": modality_measures(sample, **dealt),
            "reuse": reuse_measures(sample, batch_size=config.batch_size, cache_sizes=config.cache_sizes),
        }
        write_json(workdir / MEASURES, measures)
        write_report(workdir, measures, config, command, console)
    return measures


def _sample(config: ml_collections.ConfigDict, counts: dict[str, int], workdir: Path) -> Sample:
    path = locate(config.model)
    model_config = read_config(path)
    processor = Processor.from_directory(path) if (path / "tokenizer.json").exists() else None
    examples = _examples(config, counts, workdir, processor, model_config.text.vocab_size)
    labels = _labels(examples, counts, config.fewest)
    _, dense, _ = checkpoints.load_dense_and_experts(path, jnp.float32)
    fingerprint = fingerprint_of(dense.config, dense)

    def recorder() -> Recorder:
        end_ids = processor.eos_token_ids if processor is not None else end_token_ids(path)
        return Recorder(checkpoints.load_model(path, jnp.float32), end_ids, fingerprint)

    source = {"model_fingerprint": fingerprint, "sequences": counts, "split": config.split, "seed": config.seed}
    folder = workdir / "traces"
    record(recorder, processor, lambda: examples, folder, source=source, batch_size=config.record_batch_size)
    trace = TraceSet.load(folder).trace
    prompts = [encode_example(processor, example) for example in examples]
    clusters = [example.cluster for example in examples]
    image = _image_tokens(trace, prompts, getattr(model_config, "image_token_id", None))
    return Sample(trace, [prompt.input_ids for prompt in prompts], image, labels, clusters)


def _examples(
    config: ml_collections.ConfigDict,
    counts: dict[str, int],
    workdir: Path,
    processor: Processor | None,
    vocabulary: int,
) -> list[Example]:
    return benchmark_examples(
        data_folder(config, workdir),
        config.split,
        counts,
        image_first=config.image_first,
        seed=config.seed,
        prepared_dir=workdir / "tfds",
        prepare=documents_cut(processor, config.text_tokens, vocabulary),
    )


def _labels(examples: list[Example], counts: dict[str, int], fewest: int) -> dict[str, list[str]]:
    """Kinds of each prompt, where there are several: its benchmark, and its question type there.

    Raises:
      InputError: too few prompts of a kind.
    """
    tasks = np.repeat(list(counts), list(counts.values())).tolist()
    groups = [f"{task}: {example.group}" for task, example in zip(tasks, examples, strict=True)]
    several = {name: kinds for name, kinds in (("task", tasks), ("group", groups)) if len(set(kinds)) > 1}
    for name, kinds in several.items():
        common_kinds(kinds, fewest, name)
    return several


def _image_tokens(trace: RoutingTrace, prompts: list[Prompt], image_token: int | None) -> np.ndarray:
    """Which tokens of the trace are of an image: bool [N, T]."""
    image = np.zeros(trace.experts.shape[:2], bool)
    if image_token is not None:
        for row, prompt in enumerate(prompts):
            image[row, : len(prompt.input_ids)] = prompt.input_ids == image_token
    return image
