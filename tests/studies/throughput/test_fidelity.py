"""The simulator takes as long as a session on the virtual clock; its error and ranks are as stated."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest

from configs.throughput_cpu import RIVALS
from expertflow_jax.inference.served import serve
from expertflow_jax.offload.link import LinkSpec
from expertflow_jax.offload.variant import RESIDENT, Variant
from expertflow_jax.simulation.costs import ComputeCosts, Line
from expertflow_jax.studies.throughput import fidelity
from expertflow_jax.studies.throughput.grid import cells_of
from expertflow_jax.studies.throughput.measure import run_once
from expertflow_jax.studies.throughput.runner import Models
from expertflow_jax.studies.throughput.simulated import measured_costs, simulated_seconds
from expertflow_jax.workloads.window_forecasts import make_forecasters
from expertflow_jax.workloads.windows import make_window
from tests.studies.throughput import tiny

NOTHING = Line(0.0, 0.0)
COSTS = ComputeCosts(Line(1e-4, 0.0), Line(5e-5, 1e-6), 1e-5, NOTHING, NOTHING, NOTHING)
LINK = LinkSpec(4.0, 10.0)


@pytest.fixture(scope="module")
def windows():
    """A window of each phase, batch by batch and in blocks of two."""
    config = tiny.get_config()
    models = Models(config)
    cells = [dataclasses.replace(cell, batches=2) for cell in cells_of(config) if cell.cache_fraction]
    return [models.window(cell) for cell in cells]


def on_the_virtual_clock(window, variant, slots, truth):
    with serve(window.setup, variant, slots, LINK, costs=COSTS) as session:
        started = window.start(session)
        forecasters = make_forecasters(window, variant, truth, session, started)
        window.setup.stages.foretell(window.routing())
        session.engine.reset_stats()
        window.run(session, started, forecasters)
        return session.engine.stats()["wall_seconds"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["on_demand", "cache_moe", "expertflow", "expertflow(truth)"])
def test_the_simulator_takes_as_long_as_a_session_on_the_virtual_clock(windows, name):
    variant = Variant.of(name)
    for window in windows:
        slots = window.setup.num_experts // 2
        truth = run_once(window, RESIDENT, 0, LINK).needed
        seconds = simulated_seconds(window, variant, slots, LINK, COSTS)
        assert seconds == pytest.approx(on_the_virtual_clock(window, variant, slots, truth))


@pytest.mark.slow
def test_every_rival_can_be_timed():
    config = tiny.get_config()
    models = Models(config)
    window = make_window(models.get(models.model.name), "decode", 1, 1, 1)
    window.fill_caches()
    for name in RIVALS:
        repeat = run_once(window, Variant.of(name), window.setup.num_experts // 2, LINK)
        assert repeat.seconds > 0


@pytest.mark.slow
def test_costs_add_up_to_the_resident_run(windows):
    for window in windows:
        costs = measured_costs(window, resident_seconds=10.0)
        layer_steps = sum(len(members) for members in window.routing()) * window.setup.store.num_layers
        assert 0 < costs.attend.base * layer_steps < 10.0
        assert costs.predictor.base > 0
        assert costs.per_expert + costs.experts.base + costs.experts.per_unit > 0


def made_up(variant, measured, simulated, **where):
    place = {"model": "m", "phase": "decode", "batch_size": 8, "cache_fraction": 0.5, "batches_per_block": 1} | where
    return SimpleNamespace(
        **place,
        cell=tuple(place.values()),
        variant=variant,
        wall_seconds=measured,
        simulated_seconds=simulated,
        tokens_per_second=1 / measured,
    )


def test_errors_and_ranks_are_of_the_simulated_rows_of_each_cell():
    rows = [
        made_up("resident", 1.0, None),
        made_up("cache_moe", 2.0, 2.5),
        made_up("expertflow", 1.5, 1.5),
        made_up("on_demand", 4.0, 2.0),
        made_up("expertflow", 3.0, 3.0, batch_size=1),
        made_up("cache_moe", 3.1, 2.0, batch_size=1),  # measured speeds within 5 %: no order
    ]
    judged = fidelity.agreement(fidelity.simulated_cells(rows))
    assert judged.errors == pytest.approx([-0.2, 0.0, 1.0, 0.0, 0.55])
    assert (judged.median, judged.worst) == pytest.approx((0.2, 1.0))
    assert (judged.alike, judged.pairs) == (2, 3)
    assert np.allclose(judged.taus, [1 / 3, -1.0])
    assert [line[1:3] for line in fidelity.summary_grid(rows).rows] == [("2", "5"), ("2", "5")]
    assert fidelity.cell_grid(rows).rows[0][5:] == ("0 (+100.0 %)", "0 (-20.0 %)", "1 (+0.0 %)", "0.33")
