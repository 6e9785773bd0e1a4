"""Looks the machine over in about a minute: a table with verdicts and remedies, and the figures in doctor.json."""

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path

import jax
import ml_collections
from rich.console import Console

from expertflow_jax import interrupts
from expertflow_jax.files import make_folder, write_json
from expertflow_jax.harness.cells import number, one_of
from expertflow_jax.harness.environment import describe_environment
from expertflow_jax.harness.workdir import to_json
from expertflow_jax.models.device_form import named_form
from expertflow_jax.offload.budget import format_bytes
from expertflow_jax.studies.doctor.findings import Finding, as_table, on_cpu
from expertflow_jax.studies.doctor.link import Link, link_findings
from expertflow_jax.studies.doctor.machine import cap_findings, device_finding
from expertflow_jax.studies.doctor.model import RandomModel, decode_findings, group_finding
from expertflow_jax.workloads import shapes

SIZES = ("auto", "whole", "small")
_ON_CPU = "host and device are one memory and one processor here; ask a GPU"


def check(config: ml_collections.ConfigDict) -> None:
    """Raises InputError for values that cannot be."""
    one_of(list(shapes.SHAPES))("config key shape", config.shape)
    one_of(SIZES)("config key size", config.size)
    for key, least in (("layers", 2), ("copy_megabytes", 1), ("repeats", 1), ("steps", 1), ("batch_size", 1)):
        number(least)(f"config key {key}", config[key])
    number(0.0, above=True)("config key seconds", config.seconds)
    named_form(config.get("device_form"))


def shape_of(config: ml_collections.ConfigDict, platform: str) -> shapes.Shape:
    """A few layers of the published model, cut down where a CPU would have to compute them."""
    shape = shapes.find_shape(config.shape)
    if config.size == "whole" or (config.size == "auto" and platform != "cpu"):
        return shape.whole(config.layers, shapes.VOCABULARY)
    return dataclasses.replace(shape, num_layers=config.layers)


def plan(config: ml_collections.ConfigDict) -> None:
    """Prints what would be measured, and the memory that it takes."""
    check(config)
    platform = jax.local_devices()[0].platform
    stages, store = shapes.describe(shape_of(config, platform))
    experts = store.num_layers * store.num_experts * store.expert_bytes
    copies = 2 * 10**6 * config.copy_megabytes
    print(
        f"{config.shape} on {platform}: {store.num_layers} layers of {store.num_experts} experts, "
        f"{format_bytes(store.expert_bytes)} each; host {format_bytes(experts + copies)}, device "
        f"{format_bytes(experts + stages.dense_bytes + copies)}; about {config.seconds:g} s of decoding"
    )


def run(config: ml_collections.ConfigDict, workdir: Path) -> list[Finding]:
    """Measures, prints the table and writes doctor.json.

    Raises:
      InputError: bad config, or a workdir that cannot be written to.
    """
    check(config)
    folder, console = make_folder(workdir), Console(width=None if sys.stdout.isatty() else 118, highlight=False)
    findings = []
    for finding in _findings(config):
        interrupts.check()
        findings.append(finding)
    console.print(as_table(findings))
    write_json(
        folder / "doctor.json",
        {
            "findings": to_json([dataclasses.asdict(finding) for finding in findings]),
            "config": to_json(config),
            "environment": describe_environment(config.seed),
        },
    )
    console.print(f"wrote {folder / 'doctor.json'}", soft_wrap=True)
    return findings


def _findings(config: ml_collections.ConfigDict) -> Iterator[Finding]:
    device = jax.local_devices()[0]
    yield device_finding(device)
    yield from cap_findings(device)
    model = RandomModel.of(shape_of(config, device.platform), config.seed, named_form(config.get("device_form")))
    link = Link(device, 10**6 * config.copy_megabytes, config.repeats)
    yield group_finding(model)
    measured = link_findings(link, model)
    raw = measured[0].numbers["bytes_per_second"]
    *decoding, bits = decode_findings(model, config.batch_size, config.steps, config.seconds, raw)
    for finding in (*measured, *decoding):
        yield on_cpu(finding, _ON_CPU) if device.platform == "cpu" else finding
    yield bits
