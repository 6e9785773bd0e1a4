"""Pre-gates in the routers' place and as forecasts, and how they are stored, trained and found."""

import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1]))
from small_model import random_prompts, served, small_config

from expertflow_jax import OffloadedModel
from expertflow_jax.errors import InputError
from expertflow_jax.harness.workdir import Workdir
from expertflow_jax.inference.forecasting import NoForecast
from expertflow_jax.inference.generation import generate_batch
from expertflow_jax.inference.pregated import ForeseeingStages, PregatedStages, gate_bytes, with_gates
from expertflow_jax.inference.session import InferenceSession
from expertflow_jax.offload.engine import ExpertCacheEngine
from expertflow_jax.offload.misses import make_miss_policy
from expertflow_jax.offload.policies import make_policy
from expertflow_jax.predictor.pregates import PreGates, load_pregates, save_pregates
from expertflow_jax.studies.claims.gates import with_spoilt_routers
from expertflow_jax.training.pregates import Lessons, recall, train

CONFIG = small_config()
STAGES, STORE = served(CONFIG)
TEXT = CONFIG.text
PROMPTS = random_prompts(CONFIG, 4, np.random.default_rng(3))


def random_gates(seed=0):
    keys = jax.random.split(jax.random.key(seed), 2)
    sizes = (STORE.num_layers - 1, TEXT.hidden_size, 8), (STORE.num_layers - 1, 8, TEXT.num_experts)
    return PreGates(*(jax.random.normal(key, size) for key, size in zip(keys, sizes, strict=True)), "model")


def answers(stages, policy, slots=16, link="emulated(0.001,5)"):
    with ExpertCacheEngine(STORE, slots, policy, link) as engine:
        engine.warm_up()
        session = InferenceSession(stages, engine, make_miss_policy("wait"))
        session.records = []
        generated = generate_batch(session, PROMPTS, NoForecast(), max_new_tokens=[3] * 4, stop_ids=(0,))
        return [(a.token_ids, a.logits_digest) for a in generated], session.records, engine.stats()


def test_no_router_but_the_first_decides_at_run_time():
    gates = random_gates()
    plain, _, _ = answers(STAGES, "on_demand")
    assert answers(with_spoilt_routers(STAGES), "on_demand")[0] != plain  # routers matter
    pregated, records, _ = answers(PregatedStages(STAGES, gates), "on_demand")
    assert answers(PregatedStages(with_spoilt_routers(STAGES), gates), "on_demand")[0] == pregated  # not here
    assert pregated != plain
    for record in records:
        inside = np.arange(record.expert_ids.shape[1]) < record.lengths[:, None]
        assert (record.expert_ids[~inside] == -1).all()
        assert (record.expert_ids[inside] >= 0).all()


def test_the_double_buffer_never_mispredicts_where_the_gate_decides():
    gated = PregatedStages(STAGES, random_gates())
    expected, records, _ = answers(gated, "on_demand")
    found, _, stats = answers(gated, "pregated", link="direct")
    assert found == expected  # whatever is cached
    first_layer = sum(int(record.needed[0].sum()) for record in records)
    assert stats["misses"] == first_layer
    assert stats["corrections"] == 0


def test_gates_as_forecasts_change_no_answer():
    found, _, stats = answers(ForeseeingStages(STAGES, random_gates()), "pregated_forecast")
    assert found == answers(STAGES, "on_demand")[0]
    assert stats["prefetches"] > 0
    assert stats["corrections"] > 0


def test_gates_are_bound_to_their_model_and_to_each_other(tmp_path):
    gates = random_gates()
    save_pregates(gates, tmp_path)
    loaded = load_pregates(tmp_path, "model")
    h = jnp.ones((2, TEXT.hidden_size))
    assert (loaded.probs(0, h) == gates.probs(0, h)).all()
    with pytest.raises(InputError, match="distilled from model model, not from another"):
        load_pregates(tmp_path, "another")
    (tmp_path / "pregates.safetensors").write_bytes(b"half")
    with pytest.raises(InputError, match="truncated, corrupt"):
        load_pregates(tmp_path, "model")
    with pytest.raises(InputError, match=r"train them with train\.pregate"):
        load_pregates(tmp_path / "none", "model")


def test_a_model_without_gates_is_told_where_they_come_from():
    with pytest.raises(InputError, match=r"train some with train\.pregate and write pregated\(gates='DIR'\)"):
        with_gates(STAGES, make_policy("pregated"), None)
    assert with_gates(STAGES, make_policy("pregated_forecast"), None) is STAGES
    assert with_gates(STAGES, make_policy("cache_moe"), None) is STAGES


def test_gates_learn_what_the_next_router_says(tmp_path):
    random = np.random.default_rng(0)
    streams = random.standard_normal((2, 2000, 16)).astype(np.float32)
    teacher = 3 * random.standard_normal((2, 16, 8)).astype(np.float32)
    targets = np.asarray(jax.nn.softmax(np.einsum("gnd,gde->gne", streams, teacher)))
    data = Lessons(streams, targets, targets)
    sizes = {"hidden": 32, "batch_tokens": 256, "learning_rate": 1e-2, "weight_decay": 0.0}
    config = ml_collections.ConfigDict({"seed": 0, "steps": 200, "log_every": 50, "checkpoint_every": 100, **sizes})
    with Workdir(tmp_path / "run", {}, {}) as place:
        params, _ = train(config, data, place, show_progress=False)
    gates = PreGates(params["inner"], params["outer"], "model")
    said = np.stack([np.asarray(gates.probs(g, jnp.asarray(streams[g]))) for g in range(2)])
    assert min(recall(said, targets, 2)) > 0.8
    assert recall(targets, targets, 2) == [1.0, 1.0]


def test_the_memory_plan_counts_the_gates(tmp_path):
    gates = random_gates()
    save_pregates(gates, tmp_path)
    model = SimpleNamespace(name="", fingerprint="model")
    assert gate_bytes(make_policy(f"pregated(gates='{tmp_path}')"), model) == gates.inner.nbytes + gates.outer.nbytes
    assert gate_bytes(make_policy("pregated_forecast"), model) == 0
    assert gate_bytes(make_policy("cache_moe"), model) == 0
    with OffloadedModel.from_pretrained("digit_scenes_moe", cache_fraction=0.5, policy="pregated") as pregated:
        plan = pregated.memory_plan()
    with OffloadedModel.from_pretrained("digit_scenes_moe", cache_fraction=0.5, policy="cache_moe") as plain:
        assert plan.fixed_bytes > plain.memory_plan().fixed_bytes
