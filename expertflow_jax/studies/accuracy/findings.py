"""What a study's numbers say, in words, each computed from the rows; and what they do not support. (DESIGN section 10.)

A loss or gain in accuracy is claimed only if three things hold: McNemar's exact test, adjusted by Holm over all lossy
cells of the study, is below `ALPHA`; the paired interval leaves out 0; and the difference exceeds the noise floor.
"""

from collections.abc import Callable, Iterable, Sequence

import numpy as np

from expertflow_jax.harness.document import Block, Bullets, Grid, Heading, Paragraph
from expertflow_jax.harness.rows import CellRow
from expertflow_jax.studies.accuracy.statistics import NoiseFloor, holm, noise_floor
from expertflow_jax.studies.accuracy.tables import MISSING, Comparisons, in_order, ordered, points

ALPHA = 0.05
SUBJECT = "expertflow"
_SHOWN = 12  # cells that a list names before it says how many more there are


def findings(rows: Sequence[CellRow]) -> list[Block]:
    """The report's findings; a part whose cells the study lacks is left out."""
    parts: list[tuple[str, Callable[[Sequence[CellRow]], list[Block]]]] = [
        ("Do answers stay the same?", _lossless),
        ("Is it faster?", _speed),
        ("Does it keep the right experts?", _hit_rates),
        ("Does regrouping sequences help?", _schedulers),
        ("What do losses cost, and buy?", _lossy),
        ("What these numbers do not support", _limits),
    ]
    blocks: list[Block] = []
    for title, part in parts:
        if found := part(rows):
            blocks += [Heading(3, title), *found]
    return blocks


def changes_accuracy(rows: Sequence[CellRow]) -> dict[str, float]:
    """Lossy cells whose accuracy differs from the reference's as this file claims it, with their adjusted p."""
    floors = noise_floor(rows)
    lossy = [row for row in rows if not row.lossless]
    adjusted = holm([row.mcnemar_p for row in lossy])
    return {
        row.cell_id: float(p)
        for row, p in zip(lossy, adjusted, strict=True)
        if p < ALPHA
        and not row.delta_ci_low <= 0 <= row.delta_ci_high
        and abs(row.accuracy_delta) > floors[row.task].accuracy
    }


def name(row: CellRow) -> str:
    """A cell in a sentence."""
    return f"{row.task}, `{row.policy}` / `{row.scheduler}` / `{row.losses}` at {row.cache_fraction:.3g}"


def span(values: Iterable[float], form: str = "{:.2f}x") -> str:
    """ "1.08x to 1.44x", or "1.08x" if all read the same."""
    kept = list(values)
    low, high = form.format(min(kept)), form.format(max(kept))
    return low if low == high else f"{low} to {high}"


def _some(rows: Sequence[CellRow]) -> str:
    more = f"; and {len(rows) - _SHOWN} more" if len(rows) > _SHOWN else ""
    return "; ".join(name(row) for row in rows[:_SHOWN]) + more


def _cells(count: int) -> str:
    return f"{count} cell" if count == 1 else f"{count} cells"


def _lossless(rows: Sequence[CellRow]) -> list[Block]:
    cached = [row for row in rows if row.lossless and row.policy != "resident"]
    said = []
    if cached:
        other = [row for row in cached if not row.bit_identical]
        end = "the same logits, bit for bit, as the all-resident run of the same batches"
        said.append(
            f"**{len(cached) - len(other)} of {_cells(len(cached))}** that wait for missing experts computed {end}."
            + (f" Not identical: {_some(other)}." if other else "")
        )
        flips = [row.flips for row in cached if row.scheduler == "fifo"]
        if flips:
            said.append(
                f"In order of arrival they changed {sum(flips)} answers in all ({span(flips, '{}')} per cell of "
                f"{span((r.num_examples for r in cached), '{}')} examples)."
            )
    said += [_noise(task, floor, rows) for task, floor in noise_floor(rows).items()]
    return [Bullets(said)]


def _noise(task: str, floor: NoiseFloor, rows: Sequence[CellRow]) -> str:
    if not floor.cells:
        return f"Noise floor of {task}: unknown, for no all-resident cell ran with the `random` scheduler."
    examples = next(row.num_examples for row in rows if row.task == task)
    start = f"Noise floor of {task}: regrouping the batches at random, with every expert on the device"
    if not (floor.flips or floor.accuracy or floor.logit_kl):
        return (
            f"{start} ({_cells(floor.cells)}), changed none of {examples} answers and no probability of a first token."
        )
    return (
        f"{start} ({_cells(floor.cells)}), changed at most {floor.flips} of {examples} answers, accuracy by at most "
        f"{100 * floor.accuracy:.1f} points and the first answer token by a mean KL of {floor.logit_kl:.1e} nats. "
        "No smaller effect is claimed."
    )


def _plain(rows: Sequence[CellRow], policy: str | None = None) -> list[CellRow]:
    """Lossless cells in order of arrival."""
    wanted = [row for row in rows if row.scheduler == "fifo" and row.lossless]
    return [row for row in wanted if row.policy == policy] if policy else wanted


def _sizes(rows: Iterable[CellRow]) -> list[str]:
    """Cache fractions as they are shown, ascending."""
    return [f"{fraction:.3g}" for fraction in sorted({float(f"{row.cache_fraction:.3g}") for row in rows})]


def _speed(rows: Sequence[CellRow]) -> list[Block]:
    compare = Comparisons(rows)
    subject = in_order(_plain(rows, SUBJECT))
    ratios: dict[str, dict[str, list[float]]] = {}
    for other in ordered(row.policy for row in rows if row.policy != SUBJECT):
        for row in subject:
            ratio = compare.speed_up(row, policy=other)
            if ratio is not None:
                ratios.setdefault(other, {}).setdefault(f"{row.cache_fraction:.3g}", []).append(ratio)
    if not ratios:
        return []
    said = []
    for other, by_size in ratios.items():
        found = [ratio for part in by_size.values() for ratio in part]
        verdict = "faster in every cell" if min(found) > 1 else "slower in every cell" if max(found) < 1 else "mixed"
        aim = {"resident": ", which has all experts on the device", "oracle": ", which knows the routing"}
        said.append(f"Against `{other}`{aim.get(other, '')}: **{span(found)}** the tokens per second ({verdict}).")
    sizes = _sizes(subject)
    lines = [
        [other, *(span(by_size[s]) if s in by_size else MISSING for s in sizes)] for other, by_size in ratios.items()
    ]
    spread = "range over tasks and seeds" if len({(r.task, r.seed) for r in subject}) > 1 else "one task and seed"
    return [
        Paragraph(f"`{SUBJECT}` in order of arrival, waiting for misses, at equal cache size{_clock_note(rows)}:"),
        Bullets(said + _at_equal_memory(rows, subject, [p for p in ratios if p not in ("resident", "oracle")])),
        Paragraph(f"The same by cache fraction ({spread}):"),
        Grid(["against", *sizes], lines, [False] + [True] * len(sizes)),
    ]


def _at_equal_memory(rows: Sequence[CellRow], subject: Sequence[CellRow], others: Sequence[str]) -> list[str]:
    """The same with the predictor's memory counted: others' throughput interpolated at the subject's memory."""
    said, extra = [], 0
    for other in others:
        found = []
        for row in subject:
            theirs = [r for r in _plain(rows, other) if (r.task, r.seed) == (row.task, row.seed)]
            theirs.sort(key=lambda r: r.memory_budget_bytes)
            memory = [r.memory_budget_bytes for r in theirs]
            extra = max(
                [extra, *(row.memory_budget_bytes - r.memory_budget_bytes for r in theirs if r.slots == row.slots)]
            )
            if theirs and memory[0] <= row.memory_budget_bytes <= memory[-1]:
                rate = np.interp(row.memory_budget_bytes, memory, [r.tokens_per_second for r in theirs])
                found.append(row.tokens_per_second / float(rate))
        if found:
            said.append(f"**{span(found)}** that of `{other}`")
    if not said or not extra:
        return []
    return [
        f"With the same slots `{SUBJECT}` takes up to {extra / 2**20:.2f} MiB more, for its predictor. At equal "
        f"memory, the other's throughput interpolated between its sizes, it reaches {' and '.join(said)}."
    ]


def _clock_note(rows: Sequence[CellRow]) -> str:
    return ", in simulated time" if all(row.clock == "virtual" for row in rows) else ""


def _hit_rates(rows: Sequence[CellRow]) -> list[Block]:
    plain = [row for row in _plain(rows) if row.policy != "resident" and row.hit_rate is not None]
    if not plain:
        return []
    middle = min({row.cache_fraction for row in plain}, key=lambda fraction: (abs(fraction - 0.5), fraction))
    said = []
    for task in sorted({row.task for row in plain}):
        rates: dict[str, list[float]] = {}
        for row in plain:
            if row.task == task and row.cache_fraction == middle:
                rates.setdefault(row.policy, []).append(row.hit_rate or 0.0)
        means = sorted(((sum(found) / len(found), policy) for policy, found in rates.items()), reverse=True)
        order = ""
        for i, (rate, policy) in enumerate(means):
            relation = "" if not i else " = " if f"{rate:.3f}" == f"{means[i - 1][0]:.3f}" else " > "
            order += f"{relation}`{policy}` {rate:.3f}"
        if order:
            said.append(f"{task}, hit rates at cache fraction {middle:.3g}: {order}.")
    return [
        Bullets(said),
        Paragraph("A request counts as a hit only if the expert is in its slot when it is asked for."),
    ]


def _schedulers(rows: Sequence[CellRow]) -> list[Block]:
    compare = Comparisons(rows)
    subject = [row for row in rows if row.policy == SUBJECT and row.lossless and row.scheduler != "fifo"]
    said = []
    for scheduler in ordered(row.scheduler for row in subject):
        pairs = [
            (row, fifo)
            for row in subject
            if row.scheduler == scheduler and (fifo := compare.same_size(row, policy=SUBJECT)) is not None
        ]
        pairs = [(row, fifo) for row, fifo in pairs if fifo.experts_per_batch and fifo.tokens_per_second]
        if not pairs:
            continue
        fewer = span((100 * (row.experts_per_batch / fifo.experts_per_batch - 1) for row, fifo in pairs), "{:+.1f}%")
        faster = span(row.tokens_per_second / fifo.tokens_per_second for row, fifo in pairs)
        control = ", the control" if scheduler == "random" else ""
        said.append(
            f"`{scheduler}`{control}: {span((r.experts_per_batch for r, _ in pairs), '{:.1f}')} distinct experts per "
            f"batch and layer ({fewer}), {faster} the tokens per second."
        )
    if not said:
        return []
    return [Paragraph(f"With `{SUBJECT}` and no losses, against `fifo` at the same cache size:"), Bullets(said)]


def _lossy(rows: Sequence[CellRow]) -> list[Block]:
    lossy = in_order(row for row in rows if not row.lossless)
    if not lossy:
        return []
    compare = Comparisons(rows)
    claimed = changes_accuracy(rows)
    worse = sorted((row for row in lossy if row.cell_id in claimed), key=lambda row: row.accuracy_delta)
    unclear = [row for row in lossy if row.cell_id not in claimed]
    said = [
        f"**{len(worse)} of {len(lossy)}** lossy cells differ in accuracy from the all-resident run (Holm-adjusted p "
        f"below {ALPHA}, interval without 0, beyond the noise floor)."
    ]
    for losses in ordered(row.losses for row in lossy):
        mine = [row for row in lossy if row.losses == losses]
        lost = [row for row in mine if row.cell_id in claimed]
        gains = [gain for row in mine if (gain := _gain(compare, row)) is not None]
        changes = f" by {span((100 * r.accuracy_delta for r in lost), '{:+.1f}')} points" if lost else ""
        bought = f"; {span(gains)} the tokens per second of waiting" if gains else ""
        if all(row.quantized for row in mine):
            bought += _moved(compare, mine)
        said.append(
            f"`{losses}`: accuracy differs in {len(lost)} of {_cells(len(mine))}{changes}; "
            f"{span((r.flips for r in mine), '{}')} changed answers{bought}."
        )
    if unclear:
        said.append(
            f"In the other {_cells(len(unclear))} no difference is shown, which is not the same as none: their "
            f"intervals reach from {points(min(r.delta_ci_low for r in unclear))} to "
            f"{points(max(r.delta_ci_high for r in unclear))} points."
        )
        best = max(unclear, key=lambda row: _gain(compare, row) or 0.0)
        if (gain := _gain(compare, best)) is not None:
            said.append(
                f"The most that such a cell gains over waiting is {gain:.2f}x ({name(best)}): "
                f"{_difference(best)} points, {best.flips} changed answers."
            )
    blocks: list[Block] = [Bullets(said)]
    if worse:
        titles = [
            "task",
            "policy",
            "scheduler",
            "losses",
            "cache fraction",
            "difference, points",
            "adjusted p",
            "speed",
        ]
        lines = [
            [
                *(row.task, row.policy, row.scheduler, row.losses, f"{row.cache_fraction:.3g}", _difference(row)),
                *(f"{claimed[row.cell_id]:.1e}", _times(_gain(compare, row))),
            ]
            for row in worse[:_SHOWN]
        ]
        shown = f"The {_SHOWN} largest of them" if len(worse) > _SHOWN else "Those that differ"
        blocks += [Paragraph(f"{shown}; speed is relative to waiting with the same policy, scheduler and size:")]
        blocks += [Grid(titles, lines, [False] * 4 + [True] * 4)]
    return blocks


def _gain(compare: Comparisons, row: CellRow) -> float | None:
    return compare.speed_up(row, policy=row.policy, scheduler=row.scheduler)


def _moved(compare: Comparisons, rows: Sequence[CellRow]) -> str:
    """How many fewer bytes quantised experts put on the link; nothing if no cell of the same size tells."""
    pairs = [(row, compare.same_size(row, policy=row.policy, scheduler=row.scheduler)) for row in rows]
    found = [
        other.bytes_transferred / row.bytes_transferred
        for row, other in pairs
        if other is not None and row.bytes_transferred
    ]
    return f", {span(found, '{:.1f}')} times fewer bytes moved" if found else ""


def _times(ratio: float | None) -> str:
    return MISSING if ratio is None else f"{ratio:.2f}x"


def _difference(row: CellRow) -> str:
    return f"{points(row.accuracy_delta)} [{points(row.delta_ci_low)}, {points(row.delta_ci_high)}]"


def _limits(rows: Sequence[CellRow]) -> list[Block]:
    said = []
    for task in sorted({row.task for row in rows}):
        mine = [row for row in rows if row.task == task]
        examples = max(row.num_examples for row in mine)
        width = max((row.accuracy_ci_high - row.accuracy_ci_low) / 2 for row in mine)
        paired = max((row.delta_ci_high - row.delta_ci_low) / 2 for row in mine)
        said.append(
            f"{task}: from {examples} examples an accuracy is known to {100 * width:.1f} points either way (95%), a "
            f"paired difference to {100 * paired:.1f} in the widest case; smaller effects may go unseen. No changed "
            f"answer among {examples} leaves room for up to {100 * (1 - 0.05 ** (1 / examples)):.1f}% of others to "
            "change, unless the cell is bit-identical."
        )
    first = rows[0]
    if any(row.clock == "virtual" for row in rows):
        said.append(
            f"Time is simulated: a transfer takes bytes over the bandwidth of the link `{first.link}`, compute "
            "what was recorded once. So speeds compare decisions on such a machine; they are not measurements of "
            f"`{first.device}`."
        )
    models, seeds = ordered(row.model for row in rows), sorted({row.seed for row in rows})
    said.append(
        f"{'One model' if len(models) == 1 else 'Models'} ({', '.join(f'`{m}`' for m in models)}), batches of "
        f"{', '.join(str(size) for size in sorted({row.batch_size for row in rows}))}"
        f"{', one seed' if len(seeds) == 1 else f', {len(seeds)} seeds'}: "
        "other models, whose experts are larger and routed differently, may behave differently."
    )
    said.append(
        "Intervals resample clusters (in VQA, images); McNemar's test takes examples as independent, and where answers "
        "get partial credit it counts which are better and which worse, not by how much."
    )
    return [Bullets(said)]
