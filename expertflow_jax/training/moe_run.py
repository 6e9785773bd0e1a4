"""`train.moe`: trains on a benchmark's course, exports the averaged parameters with a model card."""

import functools
import json
from collections.abc import Callable
from pathlib import Path

import jax
import ml_collections
import numpy as np
from flax import nnx
from rich.console import Console

from expertflow_jax import checkpoints, cli
from expertflow_jax.files import make_folder, write_atomically
from expertflow_jax.harness.inputs import claimed_workdir, model_files
from expertflow_jax.harness.workdir import Workdir
from expertflow_jax.locate import locate
from expertflow_jax.models.qwen3_vl_moe import Qwen3VLMoe, Qwen3VLMoeConfig
from expertflow_jax.training.architecture import make_forward
from expertflow_jax.training.course import Course, architecture, make_course
from expertflow_jax.training.moe import train
from expertflow_jax.training.transfer import transfer
from expertflow_jax.training.warm_start import with_dense_parameters


def print_plan(config: ml_collections.ConfigDict) -> None:
    """Prints parameters, examples and the bytes that training holds, without training."""
    model = architecture(config)
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
    model = architecture(config)
    course = make_course(config, model, workdir / "data")
    inputs = dict(course.inputs())
    if config.start:
        inputs |= model_files(config.start, "start")
    with claimed_workdir(workdir, config, inputs) as place:
        export = _train_and_export(invocation, model, course, place)
    Console().print(f"exported to {export}")
    return export


def _train_and_export(invocation: cli.Invocation, model: Qwen3VLMoeConfig, course: Course, workdir: Workdir) -> Path:
    config = invocation.config
    module, metrics = train(
        config,
        model,
        workdir,
        batch_at=course.batch,
        held_out=functools.cache(course.held_out),
        forward=make_forward(model, course.patches_per_side),
        start=_start(config, course),
    )
    export = make_folder(workdir.path / "export")
    checkpoints.save_hf(export, model, module, jax.numpy.dtype(config.export_dtype))
    course.processor.write(export)
    command = " ".join(
        ["python -m train.moe", f"--config={invocation.config_path}", "--workdir=DIR", *invocation.overrides]
    )
    write_atomically(export / "README.md", _card(config, course, metrics, course.accuracies(export), command))
    return export


def _start(config: ml_collections.ConfigDict, course: Course) -> Callable[[Qwen3VLMoe], nnx.State] | None:
    """All parameters of a trained model, its dense ones alone, or neither."""
    if config.start:
        return lambda module: transfer(module, course.processor.build_tokenizer(), locate(config.start, "start"))
    if config.warm_start:
        return lambda module: with_dense_parameters(nnx.state(module), config.warm_start)
    return None


def _card(
    config: ml_collections.ConfigDict,
    course: Course,
    metrics: dict[str, float],
    accuracies: dict[str, float],
    command: str,
) -> str:
    measured = "\n".join(f"- {key}: {value:.4g}" for key, value in sorted(metrics.items()))
    table = "\n".join(f"| {name} | {value:.1%} |" for name, value in accuracies.items())
    return f"""# {course.title}

Qwen3-VL-MoE's architecture at {config.text.num_hidden_layers} MoE layers of {config.text.num_experts} experts
(top {config.text.num_experts_per_tok}), {course.about}

Rebuild: `{command}`

{course.measured}

| | accuracy |
|---|---|
{table}

At the end of training (held-out questions about images unseen in training, teacher-forced exact match):

{measured}

Config:

```json
{json.dumps(json.loads(config.to_json_best_effort()), indent=2)}
```
"""
