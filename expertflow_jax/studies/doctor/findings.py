"""What the doctor found out: one line of its table each, and its place in doctor.json."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.table import Table

Verdict = Literal["good", "weak", "bad", "cannot tell"]
_STYLES = {"good": "green", "weak": "yellow", "bad": "bold red", "cannot tell": "dim"}


@dataclasses.dataclass(frozen=True)
class Finding:
    """One measurement.

    Attributes:
      name: what was looked at.
      value: as a reader sees it.
      verdict: whether it is as it should be; "cannot tell" where this machine does not show it.
      remedy: what to do, or why it cannot be told; empty if there is nothing to do.
      numbers: the figures behind it, in seconds, bytes and rates.
    """

    name: str
    value: str
    verdict: Verdict
    remedy: str = ""
    numbers: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def graded(value: float, good: float, weak: float) -> Verdict:
    """Verdict of a figure that should be high: "good" from `good` on, "weak" from `weak` on. For one that should be
    low, give all three negative."""
    return "good" if value >= good else "weak" if value >= weak else "bad"


def on_cpu(finding: Finding, reason: str) -> Finding:
    """The same figure where a CPU stands in for the device, about which it says nothing."""
    return dataclasses.replace(finding, verdict="cannot tell", remedy=reason)


def as_table(findings: Sequence[Finding]) -> Table:
    """The findings for a terminal."""
    table = Table(box=None, padding=(0, 1), header_style="bold", pad_edge=False)
    for title, least in (("what", 18), ("measured", 24), ("verdict", 11), ("what to do", 24)):
        table.add_column(title, min_width=least, overflow="fold")
    for finding in findings:
        style = _STYLES[finding.verdict]
        table.add_row(finding.name, finding.value, f"[{style}]{finding.verdict}[/{style}]", finding.remedy)
    return table
