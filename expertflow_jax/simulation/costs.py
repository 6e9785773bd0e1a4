"""How long each stage of a step takes on the virtual clock: straight lines fitted to measurements. (DESIGN
section 7.)

A study on the virtual clock spends these seconds, so that arrivals depend on the config alone.
`eval.calibrate` records them once per machine and model; the file is committed with the configs.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from expertflow_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Line:
    """seconds = base + per_unit * units."""

    base: float
    per_unit: float

    def __call__(self, units: float) -> float:
        return self.base + self.per_unit * units

    @staticmethod
    def fit(units: Sequence[float], seconds: Sequence[float]) -> "Line":
        """Least squares of relative errors, so that short stages fit too; both coefficients at least zero."""
        from scipy.optimize import nnls

        x, y = np.asarray(units, float), np.asarray(seconds, float)
        weights = 1 / np.maximum(y, 1e-9)
        (base, per_unit), _ = nnls(np.stack([weights, x * weights], axis=1), y * weights)
        return Line(float(base), float(per_unit))


@dataclasses.dataclass(frozen=True)
class ComputeCosts:
    """Costs of one model on one machine.

    Attributes:
      attend: per token of the step, one layer's attention and router.
      experts: base per round, unit one expert row (a token through one expert).
      per_expert: seconds per distinct expert of a round (its weights are read once), beside its rows.
      head: per sequence.
      vision: per image patch.
      predictor: per token.
      recorded_on: device and date, for the record.
      route: per token of the step, one router alone: what a policy costs that asks the next router. None where it was
        not measured: then `attend`, which holds a router and more, stands for it.
    """

    attend: Line
    experts: Line
    per_expert: float
    head: Line
    vision: Line
    predictor: Line
    recorded_on: str = ""
    route: Line | None = None

    def attend_seconds(self, tokens: int) -> float:
        return self.attend(tokens)

    def route_seconds(self, tokens: int) -> float:
        return (self.route or self.attend)(tokens)

    def experts_seconds(self, rows: Sequence[int]) -> float:
        """Args: rows: rows of each expert of the round."""
        return self.experts(sum(rows)) + self.per_expert * len(rows)

    def head_seconds(self, sequences: int) -> float:
        return self.head(sequences)

    def vision_seconds(self, patches: int) -> float:
        return self.vision(patches)

    def predictor_seconds(self, tokens: int) -> float:
        return self.predictor(tokens)

    def to_json(self) -> str:
        values = dataclasses.asdict(self)
        return json.dumps({key: value for key, value in values.items() if value is not None}, indent=2) + "\n"

    @staticmethod
    def from_json(text: str, where: str = "compute costs") -> "ComputeCosts":
        """
        Raises:
          InputError: not JSON, a key is missing or unknown, or a cost is negative.
        """
        try:
            values = json.loads(text)
            lines = {
                field.name: Line(**{k: float(v) for k, v in values[field.name].items()})
                for field in dataclasses.fields(ComputeCosts)
                if field.type is Line or (field.name == "route" and "route" in values)
            }
            costs = ComputeCosts(**{**values, **lines, "per_expert": float(values["per_expert"])})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise InputError(f"{where}: {error!r}; record the costs again with eval.calibrate") from error
        numbers = [n for line in lines.values() for n in (line.base, line.per_unit)] + [costs.per_expert]
        if not all(0 <= n < float("inf") for n in numbers):
            raise InputError(f"{where}: a cost is negative or not finite; record the costs again with eval.calibrate")
        return costs

    @staticmethod
    def load(path: str | Path) -> "ComputeCosts":
        """
        Raises:
          InputError: the file is missing or malformed.
        """
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise InputError(f"compute costs {path}: {error.strerror}; record them with eval.calibrate") from error
        return ComputeCosts.from_json(text, str(path))
