"""What all studies of the committed model share; `quickstart.py` and `full.py` name their grids of cells."""

import functools
import sys

import ml_collections


def grid(
    policies,
    schedulers=("fifo",),
    miss_policies=("wait",),
    cache_fractions=(),
    memory_budgets=(),
    expert_dtypes=("",),
    tasks=(),
    batches_per_block=(1,),
):
    """One group of cells: every combination of its values. Sizes are slots / experts, or budgets in bytes; an empty
    expert dtype is the model's own, "int8" and "int4" are quantised experts beside it. Without tasks
    of its own a grid has the config's. So many batches go through the layers together."""
    named = {"tasks": tuple(tasks)} if tasks else {}
    return ml_collections.ConfigDict(
        {
            **named,
            "policies": tuple(policies),
            "schedulers": tuple(schedulers),
            "miss_policies": tuple(miss_policies),
            "cache_fractions": tuple(cache_fractions),
            "memory_budgets": tuple(memory_budgets),
            "expert_dtypes": tuple(expert_dtypes),
            "batches_per_block": tuple(batches_per_block),
        }
    )


@functools.cache
def _warn_of_name(earlier: str, name: str) -> None:
    print(f"warning: {earlier} is called {name} now; the config is read all the same", file=sys.stderr)


def block(*values, **options):
    """What `grid` was called."""
    _warn_of_name("study_base.block", "study_base.grid")
    return grid(*values, **options)


class StudyConfig(ml_collections.ConfigDict):
    """Also reads `blocks`, what `grids` was called."""

    def __getattr__(self, name):
        if name == "blocks":
            _warn_of_name("config.blocks", "config.grids")
            name = "grids"
        return super().__getattr__(name)


def get_config() -> ml_collections.ConfigDict:
    """Returns a config without grids."""
    config = StudyConfig()
    config.model = "digit_scenes_moe"  # a committed model's name, a checkpoint directory, or a hub id
    config.predictor = "digit_scenes_predictor"  # a committed predictor's name, or its directory
    config.dtype = "float32"
    config.host_memory_budget = ""  # of each model's experts, for example "32GiB"; the others stay on disk. Empty: all
    config.disk = "emulated(0.06,100)"  # GB/s, microseconds: from files to host memory, a fifth of the link

    config.tasks = ("vqa_v2", "mmbench")
    config.data_dir = ""  # official files; empty: the benchmark below, written to WORKDIR/data
    config.benchmark = "digit_scenes"  # or "easy_vqa" (pip install easy-vqa)
    config.easy_vqa = ml_collections.ConfigDict({"images": 0})  # of each split; 0 for all
    config.digit_scenes = ml_collections.ConfigDict({"train": 4_000, "val": 2_000, "seed": 0})  # questions
    config.image_first = False  # whether prompts show the image before the question
    # How questions are asked: "" as here; "lmms-eval" or "vlmevalkit": prompt, image place and length of answers as
    # that harness has them.
    config.harness = ""
    config.max_new_tokens = 0  # length limit of an answer; 0: the harness's
    config.evaluator = ""  # of multiple choice: "vlmevalkit-2025-08" (also with "") or "vlmevalkit-2026-06"
    config.split = "val"
    config.text_tokens = 128  # tokens of a sequence of task "text", which cuts DATA_DIR/text/val.jsonl or .txt
    config.num_examples = 128  # per task; 0 for all. MMBench keeps whole circular groups
    config.sample_seed = -1  # of a random sample of whole images from the split; -1: the first num_examples

    config.batch_size = 8
    config.window = 64  # sequences that the token scheduler sees at once
    config.max_wait = 8  # batches that a sequence may be passed over
    config.seeds = (0,)
    config.bootstrap_samples = 2_000
    config.equivalence_margin = 0.01  # a difference in accuracy below one point counts as no impact, if it is shown

    config.launcher = ""  # what runs the cells: "" this process, "local" processes of this machine, "ray" a Ray cluster
    config.workers = 1  # cells that run at once, each in a process of its own

    config.clock = "virtual"  # arrivals by bytes / bandwidth and recorded compute costs: rows are reproducible
    config.costs = "configs/costs/digit_scenes_moe_cpu.json"  # seconds per stage, recorded by eval.calibrate
    # GB/s, microseconds: host to device. With the recorded costs, all experts of a layer take about nine times as long
    # to move as the layer takes to prefill a batch, and one expert half as long as a layer of a decode step. For
    # Qwen3-VL-30B-A3B in bfloat16 on an RTX 4090 behind PCIe 4.0 x16 these are about 9 (4,096 tokens) and 0.7
    # (batch of 8), by arithmetic: 9.4 MB per expert at 25 GB/s against 80 TFLOP/s and 0.9 TB/s.
    config.link = "emulated(0.28,2)"
    config.grids = ml_collections.ConfigDict(sort_keys=False)  # groups of cells by name, in the order of the file
    return config
