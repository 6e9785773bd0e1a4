"""A study of perplexity: lossless cells foretell the same tokens with the same logits, and the numbers are right."""

import json
import math

import numpy as np
import pytest

from eval import study
from expertflow_jax import cli
from expertflow_jax.api import OffloadedModel


@pytest.fixture(scope="module")
def documents():
    rng = np.random.default_rng(0)
    return [rng.integers(20, 60, size=n).tolist() for n in (13, 8, 2)]


@pytest.mark.slow
def test_perplexity_of_a_text(documents, tmp_path):
    (tmp_path / "text").mkdir()
    lines = [json.dumps({"input_ids": ids}) for ids in documents]
    (tmp_path / "text/val.jsonl").write_text("\n".join(lines) + "\n")
    workdir = tmp_path / "run"
    arguments = [
        "--config=configs/text_study.py",
        f"--config.data_dir={tmp_path}",
        f"--workdir={workdir}",
        "--config.batch_size=2",
        "--config.grids.lossless.cache_fractions=(0.25,)",
        "--config.grids.lossy.cache_fractions=(0.25,)",
        "--config.grids.lossy.miss_policies=('drop',)",
        "--config.bootstrap_samples=100",
        "--config.text_tokens=8",
    ]
    assert cli.run_command(study.main, description="", argv=arguments) == 0
    rows = [json.loads(line) for line in (workdir / "results.jsonl").read_text().splitlines()]
    assert len(rows) == 7
    sequences = [ids[start : start + 8] for ids in documents for start in range(0, len(ids), 8)]
    expected, hits = surprises(sequences)
    for row in rows:
        assert row["num_examples"] == len(sequences)
        if row["lossless"]:
            assert row["bit_identical"]
            assert row["perplexity"] == pytest.approx(math.exp(np.mean(np.concatenate(expected))), rel=1e-4)
            assert row["accuracy"] == pytest.approx(np.mean([h.mean() for h in hits]))
    dropped = [row for row in rows if not row["lossless"]]
    assert all(row["perplexity"] != rows[0]["perplexity"] for row in dropped)


def surprises(sequences):
    """Negative log-likelihoods and hits from the logits of every position."""
    nats, hits = [], []
    with OffloadedModel.from_pretrained("digit_scenes_moe", dtype="float32", max_tokens=16) as model:
        for ids in sequences:
            logits = model.logits(np.array([ids]))[0].astype(np.float64)
            following = np.array(ids[1:])
            logsum = np.log(np.exp(logits[:-1]).sum(axis=1))
            nats.append(logsum - logits[np.arange(len(following)), following])
            hits.append(logits[:-1].argmax(axis=1) == following)
    return nats, hits
