"""Where compiled programs are kept, and that a run never fails for want of a place."""

import os
import subprocess
import sys

import pytest

SCRIPT = """
import jax, jax.numpy as jnp
from expertflow_jax import compilation_cache
jax.jit(lambda x: x + 1)(jnp.ones(3))  # what is compiled before must not settle that there is no cache
folder = compilation_cache.enable({argument})
if folder:
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    jax.jit(lambda x: x @ x)(jnp.ones((8, 8)))
    print(folder.relative_to("{root}").parts[:-1], len(list(folder.iterdir())) > 0)
print(jax.config.jax_compilation_cache_dir is None)
"""


@pytest.mark.parametrize(
    ("variables", "argument", "expected"),
    [
        ({}, "None", "('xdg', 'expertflow_jax', 'xla') True\nFalse"),
        ({"EXPERTFLOW_COMPILATION_CACHE": "{root}/other"}, "None", "('other',) True\nFalse"),
        ({"EXPERTFLOW_COMPILATION_CACHE": "off"}, "'{root}/named'", "('named',) True\nFalse"),
        ({"EXPERTFLOW_COMPILATION_CACHE": "off"}, "None", "True"),
        ({"EXPERTFLOW_COMPILATION_CACHE": "/proc/nowhere"}, "None", "True"),
        ({"JAX_COMPILATION_CACHE_DIR": "{root}/users"}, "None", "False"),
    ],
)
def test_programs_go_where_they_should(tmp_path, variables, argument, expected):
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("JAX_", "EXPERTFLOW_"))}
    environment |= {"XDG_CACHE_HOME": f"{tmp_path}/xdg", "JAX_PLATFORMS": "cpu"}
    environment |= {name: value.format(root=tmp_path) for name, value in variables.items()}
    script = SCRIPT.format(argument=argument.format(root=tmp_path), root=tmp_path)
    run = subprocess.run([sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True)
    assert run.stdout.strip() == expected
