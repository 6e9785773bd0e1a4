"""The hours of an evaluation: blocks take fewer, a card that holds everything takes the compute alone."""

import re

import pytest

from eval import plan
from expertflow_jax import cli

SMALL = (
    "--config.served=mixtral_8x7b",
    "--config.batch_size=2",
    "--config.sequences=4",
    "--config.new_tokens=1",
    "--config.batches_per_block=(1,2)",
    "--config.variants=('cache_moe',)",
    "--config.data_sets=(('short', 36000, 20, 0, 1),)",
)


def run(capsys, *arguments):
    code = cli.run_command(
        plan.main,
        description=plan.__doc__,
        needs_workdir=False,
        argv=["--config=configs/plan_evaluation.py", *arguments],
    )
    out = capsys.readouterr()
    return code, out.out, out.err.strip()


@pytest.mark.slow
def test_blocks_take_fewer_hours_and_a_large_card_only_computes(capsys):
    cards = "--config.cards=(('rtx4090', '4GiB'), ('rtx4090', '24GiB'), ('h100', '200GiB'))"
    code, out, _ = run(capsys, *SMALL, cards)
    assert code == 0
    small, middle, large = [line for line in out.splitlines() if line.startswith("short")]
    assert "no batch fits" in small
    alone, blocks, resident = (float(word) for word in middle.split() if re.fullmatch(r"\d+\.\d\d", word))
    assert resident < blocks < alone
    hours = re.findall(r" (\d+\.\d\d)\b", large)
    assert len(set(hours)) == 1
    assert "published peaks" in out


@pytest.mark.parametrize(
    ("override", "named"),
    [
        ("--config.cards=(('rtx9', '24GiB'),)", "cards[0]"),
        ("--config.cards=(('rtx4090', 'much'),)", "much"),
        ("--config.data_sets=(('a', 0, 20, 0, 1),)", "data_sets[0]"),
        ("--config.data_sets=(('a', 10),)", "data_sets[0]"),
        ("--config.served=gpt", "served"),
        ("--config.batches_per_block=(64,)", "batches_per_block"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(override, named, capsys):
    code, _, error = run(capsys, override)
    assert code == 2
    assert named in error
    assert "\n" not in error
