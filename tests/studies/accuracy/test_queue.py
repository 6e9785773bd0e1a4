"""What the token scheduler forecasts of waiting prompts reaches the expert cache, and only that."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from expertflow_jax.predictor.forecast import combine_sequences
from expertflow_jax.studies.accuracy import execution
from expertflow_jax.studies.accuracy.grid import Cell


@pytest.mark.parametrize(("scheduler", "foreseen"), [("greedy", True), ("fifo", False)])
def test_a_batch_knows_the_one_behind_it_within_the_window(scheduler, foreseen, monkeypatch):
    monkeypatch.setattr(execution, "_book_scheduling", lambda *_: None)
    signatures = np.random.default_rng(0).random((22, 2, 6)).astype(np.float32)
    data: Any = SimpleNamespace(prompts=[None] * 22)
    nothing: Any = None
    setting = execution.Setting(
        nothing, nothing, {"t": data}, {"t": signatures}, None, "", batch_size=4, window=11, max_wait=None
    )
    cell = Cell("t", "expertflow", scheduler, "wait", 0.5, None, 0)
    found = list(execution._batches(setting, cell, nothing))
    assert sorted(np.concatenate([batch for batch, _ in found]).tolist()) == list(range(22))
    assert len(found) == execution._number_of_batches(setting, 22) == 6
    for place, (_, queued) in enumerate(found):
        behind = found[place + 1 : 3 if place < 3 else 6]  # of the window; what comes next is not planned yet
        assert len(queued) == (len(behind) if foreseen else 0)
        for use, (batch, _) in zip(queued, behind, strict=False):
            np.testing.assert_array_equal(use, combine_sequences(signatures[batch]))
