"""Forecasts are rounded at the engine's door, so that their last bits decide nothing."""

import numpy as np
import pytest

from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.foresight import GRID, on_grid
from expertflow_jax.offload.store import ExpertSizes


def test_chances_lie_on_the_grid_and_certain_ones_stay():
    chances = np.random.default_rng(0).random((2, 3, 50)).astype(np.float32)
    rounded = on_grid(chances)
    assert rounded.dtype == np.float32
    assert (np.rint(rounded * GRID) == rounded * GRID).all()
    assert abs(rounded - chances).max() <= 0.5 / GRID
    np.testing.assert_array_equal(on_grid(rounded), rounded)
    np.testing.assert_array_equal(on_grid(np.array([0.0, 0.5, 1.0])), [0, 0.5, 1])


@pytest.mark.parametrize("within_a_step", [False, True])
def test_the_last_bits_of_a_forecast_decide_nothing(within_a_step):
    """Chances on the grid, and the same moved by less than half of it, as another instruction set might."""
    random = np.random.default_rng(1)
    needed_NLE = random.random((10, 4, 8)) < 0.3
    chances = on_grid(np.clip(0.6 * needed_NLE + 0.4 * random.random(needed_NLE.shape), 0, 1))
    for threshold in (0.5, 0.75):
        chances[random.random(chances.shape) < 0.3] = threshold
    logs = []
    for shift in (0.0, 3e-5, -3e-5):
        engine = ExpertCacheEngine(ExpertSizes(4, 8, 64), 12, "expertflow", "emulated(0.000000064,0)")
        engine.warm_up()
        log = []
        for step, asked_LE in enumerate(needed_NLE):
            horizon = np.clip(chances[step : step + 2] + np.float32(shift), 0, 1)
            engine.begin_step(None if within_a_step else horizon)
            if within_a_step:
                engine.update_horizon(horizon)
            for layer in range(4):
                engine.clock.spend(0.8, "compute")
                log += [group for group, _ in engine.rounds(layer, np.flatnonzero(asked_LE[layer]))]
            engine.end_step()
            log.append(engine.pool.key_of.tolist())
        logs.append((log, engine.stats()))
    assert logs[0] == logs[1] == logs[2]
