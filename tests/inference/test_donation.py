"""Donated state comes first in what a jitted function returns, in its order, and never changes its kind of memory.

Read off every program that answering makes, as JAX hands it to XLA: on a CPU wrong orders and kinds do no harm, so no
other test would find them (jax#39625, XLA#29270).
"""

import re
from pathlib import Path

import jax
import numpy as np
import pytest

from expertflow_jax import OffloadedModel
from expertflow_jax.checkpoints import load_model
from expertflow_jax.locate import locate
from expertflow_jax.predictor import load_predictor
from expertflow_jax.predictor.recording import Recorder
from expertflow_jax.processing.batching import Prompt

GOLDENS = Path(__file__).parents[1] / "goldens" / "models"
DEFAULT = ("base", "switch_small_capacity")  # the others take as long again, each
NAMES = sorted(path.name for path in GOLDENS.iterdir())  # of every family
CASES = [pytest.param(name, marks=() if name in DEFAULT else pytest.mark.slow) for name in NAMES]
PROMPTS = [[5, 6, 7], [5, 6, 7, 8, 9]]


@pytest.fixture
def programs(tmp_path):
    """A folder to which every program goes that is made from here on."""
    jax.config.update("jax_dump_ir_to", str(tmp_path))
    yield tmp_path
    jax.config.update("jax_dump_ir_to", "")


def donations(programs):
    """By program: of each donated argument the number of the output in its memory, and its own text."""
    versions: dict = {}
    for path in sorted(programs.glob("*.mlir")):
        text = path.read_text()
        name = re.search(r"module @jit_(\w+)", text)[1]
        [signature] = re.findall(r"func\.func public @main\((.*?)\) -> ", text, re.DOTALL)
        arguments = re.split(r",\s*(?=%arg\d+:)", signature)
        donated = [a for a in arguments if "tf.aliasing_output" in a or "jax.buffer_donor" in a]
        if donated:
            outputs = [re.search(r"tf\.aliasing_output = (\d+)", a) for a in donated]
            versions.setdefault(name, []).append(([place and int(place[1]) for place in outputs], donated))
    return versions


def check(programs):
    for name, versions in programs.items():
        for outputs, arguments in versions:
            assert outputs == list(range(len(outputs))), f"{name}: {arguments}"
            assert not any("pinned_host" in argument for argument in arguments), name


@pytest.mark.parametrize("case", CASES)
def test_answering_donates_in_order(case, programs):
    with OffloadedModel.from_pretrained(
        str(GOLDENS / case), policy="on_demand", cache_fraction=0.5, max_batch_size=2, max_tokens=64
    ) as model:
        model.generate(input_ids=PROMPTS, max_new_tokens=3)
    donating = donations(programs)
    assert {"attend", "run"} <= set(donating)
    check(donating)


@pytest.mark.slow
def test_recording_and_forecasting_donate_in_order(programs):
    module = load_model(GOLDENS / "base")
    prompts = [Prompt(np.array(ids, np.int32)) for ids in PROMPTS]
    Recorder(module, (), "").record(prompts, np.full(2, 2))
    predictor = load_predictor(locate("digit_scenes_predictor", "predictor"))
    x = np.zeros((1, 4, predictor.config.input_width), np.float32)  # [B, T, D]
    _, cache = predictor.prefill(x, np.array([3], np.int32))
    predictor.decode(x[:, :1], cache)
    donating = donations(programs)
    assert {"_run", "_extend"} <= set(donating)
    check(donating)
