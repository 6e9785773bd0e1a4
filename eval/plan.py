"""How a model would be divided between device, host and disk, for several budgets; config.json is all that is read.

python -m eval.plan --config=configs/plan.py --config.model=configs/models/qwen3_vl_30b_a3b
"""

import sys

from expertflow_jax import cli


def main(invocation: cli.Invocation) -> None:
    from rich.console import Console
    from rich.table import Table

    from expertflow_jax.errors import InputError
    from expertflow_jax.inference.planning import ModelSizes, plan_service
    from expertflow_jax.locate import locate
    from expertflow_jax.offload.budget import format_bytes
    from expertflow_jax.predictor import load_predictor

    config = invocation.config
    directory = locate(config.model, weights=False)
    sizes = ModelSizes.described_in(
        directory, config.dtype or None, config.expert_dtype or None, config.host_memory_budget or None
    )
    predictor = load_predictor(locate(config.predictor, "predictor")) if config.predictor else None
    table = Table(box=None, padding=(0, 1), header_style="bold")
    table.add_column("memory budget", no_wrap=True)
    columns: list[list[tuple[str, str]]] = []
    refused = []
    for budget in config.memory_budgets:
        try:
            size, plan = plan_service(
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
            continue
        table.add_column(budget, justify="right", no_wrap=True)
        *parts, slots, total = plan.describe()
        _, host, disk = plan.describe_tiers()
        shown = [*parts, ("expert slots", slots[1]), ("device, total", total[1]), host, disk]
        columns.append(
            [(name, format_bytes(count)) for name, count in shown]
            + [("slots", f"{plan.slots} of {plan.num_layers * plan.num_experts}"), ("sequences", str(size.sequences))]
        )
    if not columns:
        raise InputError("; ".join(refused) or "config key memory_budgets: name at least one, for example ('16GiB',)")
    for cells in zip(*columns, strict=True):
        table.add_row(cells[0][0], *(text for _, text in cells))
    console = Console(highlight=False, soft_wrap=True)
    console.print(
        f"{directory.name}: {plan.num_layers} MoE layers of {plan.num_experts} experts, "
        f"{format_bytes(plan.expert_bytes)} each as {config.expert_dtype or sizes.dtype}; prompt and answer of up to "
        f"{config.max_tokens} tokens"
    )
    console.print(table)
    for reason in refused:
        console.print(reason)


if __name__ == "__main__":
    sys.exit(cli.run_command(main, description=__doc__, needs_workdir=False))
