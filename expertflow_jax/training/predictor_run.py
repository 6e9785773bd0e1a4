"""`train.predictor`: records routing traces, trains, calibrates, reports and exports; every part is kept on a rerun.

Axes: D model width, L MoE layers, E experts, K top-k.
"""

import functools
import json
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import ml_collections
from flax import nnx
from rich.console import Console

from expertflow_jax import checkpoints, cli
from expertflow_jax.checkpoints.load import read_config
from expertflow_jax.errors import InputError
from expertflow_jax.files import write_atomically
from expertflow_jax.harness.inputs import claimed_workdir, model_files, split_files
from expertflow_jax.locate import locate
from expertflow_jax.predictor import publish, report
from expertflow_jax.predictor.examples import Prepare, benchmark_examples, documents_cut, unusual_examples
from expertflow_jax.predictor.model import PredictorConfig, RoutingPathPredictor
from expertflow_jax.predictor.recording import Recorder, is_recorded, record
from expertflow_jax.predictor.runtime import Predictor
from expertflow_jax.predictor.storage import save_predictor
from expertflow_jax.processing import Processor, end_token_ids
from expertflow_jax.routing.fingerprint import fingerprint_of
from expertflow_jax.routing.trace_set import TraceSet
from expertflow_jax.tasks.base import Example
from expertflow_jax.tasks.provided import data_folder
from expertflow_jax.training.predictor import TrainingConfig, train_predictor

TRAIN, CALIBRATION, HELD_OUT, UNUSUAL = "train", "calibration", "held_out", "out_of_distribution"


def predictor_config(config: ml_collections.ConfigDict, path: Path) -> PredictorConfig:
    """The predictor's shape for the model at `path`; raises InputError if the two do not fit."""
    text = read_config(path).text
    return PredictorConfig(
        text.hidden_size, len(text.moe_layers), text.num_experts, text.num_experts_per_tok, **config.predictor
    )


def training_config(config: ml_collections.ConfigDict) -> TrainingConfig:
    """How to train; raises InputError for impossible values."""
    return TrainingConfig(seed=config.seed, **config.training)


def _counts(config: ml_collections.ConfigDict) -> dict[str, int]:
    counts = {name: sum(config.sequences[name].values()) for name in (TRAIN, CALIBRATION, HELD_OUT)}
    if empty := [name for name, count in counts.items() if count < 1]:
        raise InputError(f"sequences.{empty[0]}: no sequences asked for; raise one of its tasks")
    return counts | {UNUSUAL: config.sequences.out_of_distribution}


def print_plan(config: ml_collections.ConfigDict) -> None:
    """Prints what would be recorded and trained, without doing so."""
    path = locate(config.model)
    shape, training = predictor_config(config, path), training_config(config)
    parameters = _parameters(shape)
    console = Console(soft_wrap=True)
    console.print(f"model                 {path}: {shape.moe_layers} MoE layers of {shape.num_experts} experts")
    for name, count in _counts(config).items():
        console.print(f"{name:<21} {count:,} sequences to record")
    console.print(f"predictor             {parameters:,} parameters, {4 * parameters:,} bytes")
    seen = training.steps * training.batch_size
    console.print(f"training              {seen:,} sequences in {training.steps:,} steps")


def _parameters(shape: PredictorConfig) -> int:
    abstract = nnx.eval_shape(lambda: RoutingPathPredictor(shape, rngs=nnx.Rngs(0)))
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(abstract)))


def record_all(config: ml_collections.ConfigDict, path: Path, workdir: Path) -> dict[str, TraceSet]:
    """Records what is missing under WORKDIR/traces and reads everything: name -> trace set.

    Raises:
      InputError: model or benchmark are missing or malformed, or hold fewer examples than asked for.
    """
    counts = _counts(config)
    _, dense, _ = checkpoints.load_dense_and_experts(path, jnp.float32)
    fingerprint = fingerprint_of(dense.config, dense)
    processor = Processor.from_directory(path) if (path / "tokenizer.json").exists() else None
    end_ids = processor.eos_token_ids if processor is not None else end_token_ids(path)
    sources = {
        name: {
            "set": name,
            "model_fingerprint": fingerprint,
            "data_dir": config.data_dir,
            "benchmark": None if config.data_dir else _benchmark(config),
            "image_first": config.image_first,
            "sequences": counts[name] if name == UNUSUAL else config.sequences[name].to_dict(),
            "split": config.splits.get(name, ""),
            "skipped": _skipped(config, name),
            "seed": config.seed,
        }
        | ({"text_tokens": config.text_tokens} if name != UNUSUAL and "text" in config.sequences[name] else {})
        for name, count in counts.items()
        if count
    }
    folders = {name: workdir / "traces" / name for name in sources}

    @functools.cache
    def recorder() -> Recorder:
        return Recorder(checkpoints.load_model(path, jnp.float32), end_ids, fingerprint)

    cut = documents_cut(processor, config.text_tokens, dense.config.text.vocab_size)
    if any(not is_recorded(folders[name], sources[name]) for name in sources):
        data_dir = data_folder(config, workdir)
        for name, source in sources.items():
            record(
                recorder,
                processor,
                _examples(config, data_dir, workdir / "tfds", name, cut),
                folders[name],
                source=source,
                batch_size=config.record_batch_size,
            )
    return {name: TraceSet.load(folder) for name, folder in folders.items()}


def _benchmark(config: ml_collections.ConfigDict) -> dict[str, Any]:
    """Name and sizes of what is written to WORKDIR/data."""
    return {"name": config.benchmark, **config[config.benchmark].to_dict()}


def _examples(
    config: ml_collections.ConfigDict,
    data_dir: Path,
    prepared_dir: Path,
    name: str,
    cut: Prepare,
) -> Callable[[], Sequence[Example]]:
    options = {"image_first": config.image_first, "seed": config.seed}
    if name == UNUSUAL:
        return lambda: unusual_examples(config.sequences.out_of_distribution, **options)
    split, skip = config.splits[name], _skipped(config, name)
    counts = config.sequences[name].to_dict()
    return lambda: benchmark_examples(
        data_dir, split, counts, skip=skip, prepare=cut, prepared_dir=prepared_dir, **options
    )


def _skipped(config: ml_collections.ConfigDict, name: str) -> dict[str, int]:
    """Task -> how many of a split's examples belong to the trace sets before this one."""
    skipped: Counter[str] = Counter()
    for earlier in (TRAIN, CALIBRATION, HELD_OUT):
        if earlier == name or name not in config.splits:
            break
        if config.splits[earlier] == config.splits[name]:
            skipped.update(config.sequences[earlier].to_dict())
    return dict(skipped)


def train_and_export(invocation: cli.Invocation) -> Path:
    """Everything, in the workdir; returns the export's folder."""
    config, workdir = invocation.config, invocation.workdir
    assert workdir is not None
    path = locate(config.model)
    shape, training = predictor_config(config, path), training_config(config)
    _counts(config)
    with claimed_workdir(workdir, config, model_files(config.model) | _benchmark_files(config)):
        return _train_and_export(invocation, path, shape, training)


def _benchmark_files(config: ml_collections.ConfigDict) -> dict[str, Path]:
    asked = [
        (task, config.splits[name])
        for name in (TRAIN, CALIBRATION, HELD_OUT)
        for task, count in config.sequences[name].items()
        if count
    ]
    return split_files(config, dict.fromkeys(asked))


def _train_and_export(invocation: cli.Invocation, path: Path, shape: PredictorConfig, training: TrainingConfig) -> Path:
    config, workdir = invocation.config, invocation.workdir
    assert workdir is not None
    traces = record_all(config, path, workdir)
    predictor, summary = train_predictor(
        traces[TRAIN], shape, training, workdir / "training", held_out=traces[CALIBRATION]
    )
    splits = {name: traces[name] for name in (HELD_OUT, UNUSUAL) if name in traces}
    metrics = report.evaluate(
        predictor, traces[TRAIN].trace, splits, batch_size=config.eval_batch_size, seed=config.seed
    )
    console = Console()
    report.write_report(metrics, workdir / "report.json", console)
    publish.plot_recall(metrics, workdir / "recall.png")
    write_atomically(workdir / "report.md", f"# Routing path predictor of {path.name}\n\n{publish.markdown(metrics)}")
    export = _export(invocation, path, predictor, metrics, traces[TRAIN].checksum, summary)
    console.print(f"exported to {export}; report: {workdir / 'report.md'}")
    return export


def _export(
    invocation: cli.Invocation,
    path: Path,
    predictor: Predictor,
    metrics: dict[str, Any],
    checksum: str,
    summary: dict[str, Any],
) -> Path:
    config, workdir = invocation.config, invocation.workdir
    assert workdir is not None
    command = " ".join(
        ["python -m train.predictor", f"--config={invocation.config_path}", "--workdir=DIR", *invocation.overrides]
    )
    provenance = {
        "command": command,
        "seed": config.seed,
        "model": path.name,
        "steps": summary["steps"],
        "loss": summary["loss"],
        "traces": checksum,
    }
    measured = report.summarise(metrics)
    export = workdir / "export"
    save_predictor(_described(predictor, provenance, measured), export)
    facts = provenance | {
        "model_fingerprint": predictor.model_fingerprint,
        "parameters": _parameters(predictor.config),
        "bytes": predictor.nbytes,
    }
    write_atomically(export / "README.md", publish.card(metrics, facts, json.loads(config.to_json_best_effort())))
    return export


def _described(predictor: Predictor, provenance: dict[str, Any], metrics: dict[str, Any]) -> Predictor:
    return Predictor(
        predictor.config,
        predictor.parameters,
        scale=predictor.scale,
        bias=predictor.bias,
        popularity=predictor.popularity,
        model_fingerprint=predictor.model_fingerprint,
        provenance=provenance,
        metrics=metrics,
    )
