"""`train.moe`: trains on the digit-scene stream, exports the averaged parameters with a model card."""

import json
from pathlib import Path

import jax
import ml_collections
import numpy as np
from flax import nnx
from rich.console import Console

from expertflow_jax import checkpoints, cli
from expertflow_jax.files import make_folder, write_atomically
from expertflow_jax.harness.inputs import claimed_workdir
from expertflow_jax.harness.workdir import Workdir
from expertflow_jax.models.qwen3_vl_moe import Qwen3VLMoe, Qwen3VLMoeConfig
from expertflow_jax.tasks.digit_scenes import processor_files
from expertflow_jax.tasks.digit_scenes.scenes import scans_file
from expertflow_jax.tasks.digit_scenes.stream import TrainStream, held_out_batches
from expertflow_jax.training.digit_scenes import make_forward, model_config
from expertflow_jax.training.evaluation import official_accuracies
from expertflow_jax.training.moe import train


def _stream(config: ml_collections.ConfigDict) -> TrainStream:
    second = config.second_stage
    return TrainStream(
        model_config(config),
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


def print_plan(config: ml_collections.ConfigDict) -> None:
    """Prints parameters, examples and the bytes that training holds, without training."""
    model = model_config(config)
    abstract = nnx.eval_shape(lambda: Qwen3VLMoe(model, rngs=nnx.Rngs(0)))
    sizes = [leaf.size for leaf in jax.tree.leaves(nnx.state(abstract))]
    experts = [leaf.size for leaf in jax.tree.leaves(nnx.state(abstract.experts))]
    parameters = sum(sizes)
    console = Console()
    console.print(f"parameters            {parameters:,} (experts {sum(experts):,})")
    console.print(f"training examples     {config.steps * config.batch_size:,} in {config.steps:,} steps")
    console.print(f"parameters, average, two moments and gradients: {5 * 4 * parameters / 2**20:,.0f} MiB")
    itemsize = np.dtype(jax.numpy.dtype(config.export_dtype)).itemsize
    console.print(f"export in {config.export_dtype}    {parameters * itemsize:,} bytes")


def train_and_export(invocation: cli.Invocation) -> Path:
    """Trains (or goes on training) in the workdir; returns the export's folder."""
    config, workdir = invocation.config, invocation.workdir
    assert workdir is not None
    model = model_config(config)
    stream = _stream(config)
    with claimed_workdir(workdir, config, {"scikit-learn's handwritten digits": scans_file()}) as place:
        export = _train_and_export(invocation, model, stream, place)
    Console().print(f"exported to {export}")
    return export


def _train_and_export(
    invocation: cli.Invocation, model: Qwen3VLMoeConfig, stream: TrainStream, workdir: Workdir
) -> Path:
    config = invocation.config
    batches = None

    def held_out():
        nonlocal batches
        if batches is None:
            batches = held_out_batches(model, config.eval_examples, config.batch_size, config.seed)
        return batches

    module, metrics = train(
        config, model, workdir, batch_at=stream.batch, held_out=held_out, forward=make_forward(model)
    )
    export = make_folder(workdir.path / "export")
    checkpoints.save_hf(export, model, module, jax.numpy.dtype(config.export_dtype))
    processor_files.write_processor(export)
    command = " ".join(
        ["python -m train.moe", f"--config={invocation.config_path}", "--workdir=DIR", *invocation.overrides]
    )
    official = official_accuracies(
        export, workdir.path / "data", **config.official, seed=config.seed, batch_size=config.batch_size
    )
    write_atomically(export / "README.md", _card(config, metrics, official, command))
    return export


def _card(
    config: ml_collections.ConfigDict, metrics: dict[str, float], official: dict[str, float], command: str
) -> str:
    train, val = config.official.train, config.official.val
    measured = "\n".join(f"- {key}: {value:.4g}" for key, value in sorted(metrics.items()))
    table = "\n".join(f"| {name} | {value:.1%} |" for name, value in official.items())
    return f"""# A small MoE vision-language model for digit scenes

Qwen3-VL-MoE's architecture at {config.text.num_hidden_layers} MoE layers of {config.text.num_experts} experts
(top {config.text.num_experts_per_tok}), trained from scratch on scenes of handwritten digit scans (scikit-learn's
`load_digits`; UCI optical recognition of handwritten digits, CC BY 4.0). It answers the questions of
`expertflow_jax.tasks.digit_scenes` and nothing else.

Rebuild: `{command}`

Official accuracies of greedy answers on the val split ({val:,} questions over scans that training never saw), beside
the best guess from the question alone (which has seen {train:,} training questions) and always the same letter. MMBench
is circular: every rotation of the options must be answered right.

| | accuracy |
|---|---|
{table}

At the end of training (held-out questions, scans unseen in training, teacher-forced exact match):

{measured}

Config:

```json
{json.dumps(json.loads(config.to_json_best_effort()), indent=2)}
```
"""
