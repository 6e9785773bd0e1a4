"""Any config.json, index or safetensors header ends in a model or in one line, soon and within little memory.

Each run of cases is a child process whose memory is limited, so that an allocation of a size from a file is an error.
"""

import copy
import json
import resource
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

MODELS = Path(__file__).parents[1] / "goldens" / "models"
GIBIBYTE = 1 << 30
SECONDS = 20  # of processor time, of one case
EXAMPLES = 60
NUMBERS = st.sampled_from(
    [0, 1, 2, 3, 7, 64, 200, 900, 4096, 10**7, 10**12, 2**31, 2**63, 10**400, -1, 0.5, 1e-300, 1e300, float("nan")]
)
VALUES = st.recursive(
    st.one_of(st.none(), st.booleans(), NUMBERS, st.floats(), st.integers(), st.text(max_size=9), st.just("x" * 9000)),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
ROPE = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(["default", "linear", "dynamic", "yarn", "llama3", "proportional", "longrope"])},
    optional=dict.fromkeys(
        [
            "factor",
            "rope_theta",
            "original_max_position_embeddings",
            "low_freq_factor",
            "high_freq_factor",
            "attention_factor",
            "beta_fast",
            "beta_slow",
            "mscale",
            "mscale_all_dim",
            "partial_rotary_factor",
        ],
        NUMBERS,
    ),
)
TEXTS = st.one_of(VALUES.map(json.dumps), st.binary(max_size=40).map(lambda data: data.decode("latin1")))


def places(values, path=()):
    for key, value in values.items():
        yield (*path, key)
        if isinstance(value, dict):
            yield from places(value, (*path, key))


def attempt(config: str | None = None, index: str | None = None, header: bytes | None = None, case: str = "base"):
    """Loads a golden with one of its files replaced; only InputError may come, in one line."""
    from expertflow_jax.checkpoints import load_dense_and_experts
    from expertflow_jax.errors import InputError

    with tempfile.TemporaryDirectory() as folder:
        directory, source = Path(folder), MODELS / case
        text = config if config is not None else (source / "config.json").read_text(encoding="utf-8")
        (directory / "config.json").write_text(text, encoding="utf-8", errors="replace")
        if index is not None:
            (directory / "model.safetensors.index.json").write_text(index, encoding="utf-8", errors="replace")
            (directory / "a.safetensors").symlink_to(source / "model.safetensors")
        elif header is not None:
            (directory / "model.safetensors").write_bytes(header)
        else:
            (directory / "model.safetensors").symlink_to(source / "model.safetensors")
        start = time.process_time()
        message = ""
        try:
            load_dense_and_experts(directory)
        except InputError as error:
            message = str(error)
        assert "\n" not in message
        assert len(message) < 4000
        assert time.process_time() - start < SECONDS


SETTINGS = settings(
    max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, suppress_health_check=list(HealthCheck)
)


@SETTINGS
@given(st.data())
def configs(data):
    case = data.draw(st.sampled_from(sorted(path.name for path in MODELS.iterdir())))
    values = copy.deepcopy(json.loads((MODELS / case / "config.json").read_text(encoding="utf-8")))
    for _ in range(data.draw(st.integers(1, 3))):
        path = data.draw(st.sampled_from(sorted(places(values))))
        where = values
        for key in path[:-1]:
            where = where[key]
        where[path[-1]] = data.draw(st.one_of(ROPE if "rope" in path[-1] else NUMBERS, NUMBERS, VALUES))
    attempt(config=json.dumps(values), case=case)


@SETTINGS
@given(TEXTS)
def whole_configs(text):
    attempt(config=text)


@SETTINGS
@given(
    st.dictionaries(
        st.text(max_size=9),
        st.one_of(VALUES, st.just("a.safetensors"), st.text().map("{}.safetensors".format)),
        max_size=3,
    ),
    st.one_of(TEXTS, st.none()),
)
def indices(files, text):
    attempt(index=json.dumps({"weight_map": files}) if text is None else text)


@SETTINGS
@given(st.data())
def headers(data):
    whole = (MODELS / "base" / "model.safetensors").read_bytes()
    (length,) = struct.unpack("<Q", whole[:8])
    header = json.loads(whole[8 : 8 + length])
    for _ in range(data.draw(st.integers(1, 2))):
        entry = header[data.draw(st.sampled_from(sorted(header)))]
        key = data.draw(st.sampled_from(["dtype", "shape", "data_offsets", "more"]))
        entry[key] = data.draw(
            st.one_of(VALUES, st.lists(NUMBERS, max_size=3), st.sampled_from(["F8_E4M3", "I32", "F16"]))
        )
    text = data.draw(st.one_of(st.just(json.dumps(header)), TEXTS)).encode("utf-8", errors="replace")
    size = data.draw(st.one_of(st.just(len(text)), st.integers(0, 2**64 - 1)))
    attempt(header=struct.pack("<Q", size) + text + whole[8 + length :])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["configs", "whole_configs", "indices", "headers"])
def test_one_line_or_a_model(kind):
    ended = subprocess.run([sys.executable, __file__, kind], capture_output=True, text=True, timeout=600)
    assert ended.returncode == 0, ended.stderr[-4000:]


if __name__ == "__main__":
    attempt()  # compiles what a load compiles, and takes the address space that jax reserves
    used = int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + GIBIBYTE, used + GIBIBYTE))
    {"configs": configs, "whole_configs": whole_configs, "indices": indices, "headers": headers}[sys.argv[1]]()
