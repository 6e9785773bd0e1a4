"""How a model would be divided between device, host and disk, for several budgets, as a table."""

import ml_collections
from rich.console import Console
from rich.table import Table

from expertflow_jax.errors import InputError
from expertflow_jax.inference.memory import RequestSize
from expertflow_jax.inference.planning import ModelSizes, plan_service
from expertflow_jax.locate import locate
from expertflow_jax.offload.budget import MemoryPlan, format_bytes
from expertflow_jax.predictor import load_predictor

Plans = dict[str, tuple[RequestSize, MemoryPlan]]


def show_plans(config: ml_collections.ConfigDict) -> None:
    """Prints one column for each of `config.memory_budgets`; config.json of the model is all that is read.

    Raises:
      InputError: no such model or predictor, or every budget is too small.
    """
    directory = locate(config.model, weights=False)
    sizes = ModelSizes.described_in(
        directory, config.dtype or None, config.expert_dtype or None, config.host_memory_budget or None
    )
    plans, refused = _plans(config, sizes)
    if not plans:
        raise InputError("; ".join(refused) or "config key memory_budgets: name at least one, for example ('16GiB',)")
    _, first = next(iter(plans.values()))
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{directory.name}: {first.num_layers} MoE layers of {first.num_experts} experts, "
        f"{format_bytes(first.expert_bytes)} each as {config.expert_dtype or sizes.dtype}; prompt and answer of up to "
        f"{config.max_tokens} tokens"
    )
    console.print(_table(plans))
    for reason in refused:
        console.print(reason)


def _plans(config: ml_collections.ConfigDict, sizes: ModelSizes) -> tuple[Plans, list[str]]:
    """By budget the largest request and the plan; and why the other budgets do not do."""
    predictor = load_predictor(locate(config.predictor, "predictor")) if config.predictor else None
    plans: Plans = {}
    refused = []
    for budget in config.memory_budgets:
        try:
            plans[budget] = plan_service(
                sizes,
                predictor,
                memory_budget=budget,
                cache_fraction=None,
                max_batch_size=config.max_batch_size or None,
                max_tokens=config.max_tokens,
                max_image_tokens=config.max_image_tokens,
            )
        except InputError as error:
            refused.append(str(error))
    return plans, refused


def _table(plans: Plans) -> Table:
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("memory budget", no_wrap=True)
    columns: list[list[tuple[str, str]]] = []
    for budget, (size, plan) in plans.items():
        table.add_column(budget, justify="right", no_wrap=True)
        *parts, slots, total = plan.describe()
        _, host, disk = plan.describe_tiers()
        bytes_of = [*parts, ("expert slots", slots[1]), ("device, total", total[1]), host, disk]
        columns.append(
            [(name, format_bytes(count)) for name, count in bytes_of]
            + [("slots", f"{plan.slots} of {plan.num_layers * plan.num_experts}"), ("sequences", str(size.sequences))]
        )
    for cells in zip(*columns, strict=True):
        table.add_row(cells[0][0], *(text for _, text in cells))
    return table
