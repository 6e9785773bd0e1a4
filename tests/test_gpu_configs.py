"""The configs for a GPU are sound, and what is prepared for one does no harm where none turns up."""

import os
import subprocess
import sys

import pytest

from expertflow_jax.cli import load_config
from expertflow_jax.studies.accuracy.runner import check
from expertflow_jax.studies.throughput.grid import cells_of
from expertflow_jax.workloads import shapes

SCRIPT = """
import os
from expertflow_jax import OffloadedModel, gpu_caps
assert gpu_caps.awaits_gpu(os.environ)
with OffloadedModel.from_pretrained("digit_scenes_moe", memory_budget="8MiB", max_tokens=32) as model:
    print(model.memory_plan().total_bytes <= 8 * 2**20)
print(os.environ["XLA_FLAGS"].count("autotune_results"))
"""


def test_the_configs_hold_cells():
    config = load_config("configs/study_gpu.py")
    assert check(config)
    assert (config.clock, config.link) == ("real", "direct")
    cells = cells_of(load_config("configs/throughput_gpu.py"))
    assert {cell.model for cell in cells} == set(shapes.WHOLE)


def test_whole_shapes_are_the_published_sizes():
    sizes = {name: shapes.describe(shape) for name, shape in shapes.WHOLE.items()}
    gibibytes = {
        name: store.num_layers * store.num_experts * store.expert_bytes / 2**30 for name, (_, store) in sizes.items()
    }
    assert gibibytes == {"mixtral_8x7b_whole": 84.0, "qwen3_vl_30b_a3b_whole": 54.0}


@pytest.mark.slow
def test_a_machine_with_the_plugin_but_no_gpu_loads_all_the_same(tmp_path):
    plugin = tmp_path / "jax_plugins" / "xla_cuda13"
    plugin.mkdir(parents=True)
    (plugin / "__init__.py").write_text("def initialize():\n    pass\n")
    environment = {name: value for name, value in os.environ.items() if name not in ("JAX_PLATFORMS", "XLA_FLAGS")}
    path = os.pathsep.join([str(tmp_path), os.getcwd(), environment.get("PYTHONPATH", "")])
    command = [sys.executable, "-c", SCRIPT]
    run = subprocess.run(command, env=environment | {"PYTHONPATH": path}, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.split() == ["True", "2"]
