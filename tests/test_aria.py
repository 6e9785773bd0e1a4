"""Aria through the door that practitioners use: what Hugging Face's processor gives, text in and out with images, every
tier and size of cache, and checkpoints in every spelling."""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from PIL import Image
from safetensors.numpy import load_file, save_file

sys.path.insert(0, str(Path(__file__).parent))
from aria_checkpoint import write_aria
from model_parity import TOLERANCE, batches, relative_error

from eval import generate
from expertflow_jax import OffloadedModel, cli
from expertflow_jax.checkpoints import load_model, save_hf
from expertflow_jax.errors import InputError
from expertflow_jax.tasks import word_processor
from expertflow_jax.tasks.digit_scenes.items import make_items
from expertflow_jax.tasks.digit_scenes.processor_files import PROCESSOR

GOLDEN = Path(__file__).parent / "goldens" / "models" / "aria"
SIZES = {"max_batch_size": 4, "max_tokens": 64, "max_image_tokens": 16}
ITEMS = make_items("val", 3, seed=3)


def load(path=GOLDEN, **options):
    return OffloadedModel.from_pretrained(str(path), **SIZES | options)


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    """A random model with a processor."""
    path = tmp_path_factory.mktemp("checkpoint") / "aria"
    write_aria(path)
    return path


def given(batch):
    """A batch of the golden: inputs as Hugging Face's processor names them, what is no padding, and all arrays."""
    arrays = batches(GOLDEN / "reference.npz")[batch]
    mask = np.arange(arrays["input_ids"].shape[1]) < arrays["lengths"][:, None]
    images = {name: arrays[name] for name in ("pixel_values", "pixel_mask")}
    return {"input_ids": arrays["input_ids"], "attention_mask": mask} | images, mask, arrays


@pytest.mark.parametrize("batch", [pytest.param("image", marks=pytest.mark.slow), "ragged"])
def test_logits_and_routes_of_transformers_at_half_of_the_experts(batch):
    inputs, mask, arrays = given(batch)
    with load(policy="resident") as model:
        expected = model.logits(**inputs)
    with load(policy="cache_moe", cache_fraction=0.5) as model:
        found = model.logits(**inputs)
        routes = model.routing_trace(**inputs).experts
        assert model.stats()["misses"] > 0
    np.testing.assert_array_equal(found[mask], expected[mask])
    assert relative_error(found[mask], arrays["logits"][mask]) <= TOLERANCE
    np.testing.assert_array_equal(routes[mask], arrays["expert_ids"].transpose(0, 2, 1, 3)[mask])


@pytest.mark.slow
def test_experts_on_disk_give_the_same_bits_and_quantised_ones_are_near():
    inputs, mask, arrays = given("ragged")
    with load() as model:
        expected = model.logits(**inputs)
        everything = model.memory_plan().host_bytes
    with load(host_memory_budget=everything // 2, cache_fraction=0.5) as model:
        assert model.memory_plan().disk_bytes > 0
        np.testing.assert_array_equal(model.logits(**inputs)[mask], expected[mask])
    with load(expert_dtype="int8") as model:
        first = model.logits(**inputs)[:, 0]
        assert relative_error(first, arrays["logits"][:, 0]) < 0.05
        assert not model.stats()["lossless"]


@pytest.mark.slow
def test_bfloat16_is_near():
    inputs, _, arrays = given("image")
    with load(dtype="bfloat16") as model:
        first = model.logits(**inputs)[:, :6]  # text and the first tokens of the image; later ones may route elsewhere
    assert relative_error(first, arrays["logits"][:, :6]) < 0.1


def answers(model):
    return model.generate([item.question for item in ITEMS], [item.image for item in ITEMS], max_new_tokens=6)


@pytest.mark.slow
def test_text_in_text_out_with_images(directory):
    with load(directory, policy="resident") as model:
        expected = answers(model)
        assert len(expected[0].token_ids) > 0
        noise = np.random.default_rng(0).integers(0, 256, (4, 48, 48, 3), dtype=np.uint8)
        others = [model.generate([ITEMS[0].question], [image], max_new_tokens=6) for image in noise]
    with load(directory, policy="expertflow", cache_fraction=0.5) as model:
        assert answers(model) == expected
        alone = model.generate([ITEMS[0].question], [ITEMS[0].image], max_new_tokens=6)
        assert alone[0].token_ids == expected[0].token_ids
        assert any(other != alone for other in others)  # the image matters
        text = model.generate([ITEMS[0].question], max_new_tokens=2)
        assert len(text) == 1


@pytest.mark.slow
def test_several_images_with_text_between(directory):
    image, text = {"type": "image"}, {"type": "text", "text": "Read the top row."}
    messages = [{"role": "user", "content": [image, text, image, text]}]
    pictures = [ITEMS[0].image, np.full((30, 90, 3), 200, np.uint8)]
    with load(directory, max_image_tokens=8) as model:
        found = model.generate(messages, pictures, max_new_tokens=4)
        assert model.generate(messages, pictures[::-1], max_new_tokens=4) != found
        with pytest.raises(InputError, match="image placeholders"):
            model.generate(messages, pictures[:1])


def test_the_plan_refuses_more_images_than_it_holds(directory):
    with load(directory, max_batch_size=1, max_image_tokens=4) as model:
        image = {"type": "image"}
        messages = [{"role": "user", "content": [image] * 3}]
        with pytest.raises(InputError, match="take 12 tokens; load with max_image_tokens=12 or more"):
            model.generate(messages, [ITEMS[0].image] * 3)


@pytest.mark.slow
def test_the_budget_holds(directory):
    with load(directory, policy="on_demand", cache_fraction=0.5) as model:
        budget = model.memory_plan().total_bytes
    with load(directory, policy="on_demand", memory_budget=budget) as model:
        answers(model)
        assert model.memory_plan().slots == 12
        assert model.memory_plan().total_bytes <= budget


@pytest.mark.slow
def test_generate_from_the_command_line(directory, tmp_path, capsys):
    Image.fromarray(np.asarray(ITEMS[0].image)).save(tmp_path / "scene.png")
    arguments = ["--config=configs/generate.py", f"--config.model={directory}", "--config.predictor="]
    arguments += ["--config.max_tokens=64", "--config.max_new_tokens=3"]
    asked = [f"--prompt={ITEMS[0].question}", f"--image={tmp_path / 'scene.png'}"]
    settings = {"description": "", "needs_workdir": False, "options": generate._options}
    assert cli.run_command(generate.main, argv=[*arguments, *asked], **settings) == 0
    assert "12 of 24 expert slots" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"pixel_mask": np.ones((1, 12, 12), bool)}, "pixel_mask: want"),
        ({"pixel_values": np.zeros((3, 3, 16, 16), np.float32), "pixel_mask": None}, "an image of 16 patches"),
        ({"pixel_values": np.zeros((1, 3, 12, 12), np.float32), "pixel_mask": None}, "image tokens"),
        ({"pixel_values": np.zeros((9, 3, 12, 12), np.float32), "pixel_mask": None}, "images, 9 were given"),
        ({"pixel_values": None, "pixel_mask": None}, "image tokens"),
    ],
)
def test_images_that_do_not_fit(change, message):
    inputs, _, _ = given("ragged")
    with load() as model, pytest.raises(InputError, match=message) as caught:
        model.logits(**inputs | change)
    assert "\n" not in str(caught.value)


def test_other_families_refuse_a_mask_and_patches_without_grids():
    with load(GOLDEN.parent / "base") as model:
        for images in (
            {"pixel_mask": np.ones((1, 4, 4)), "image_grid_thw": np.array([[1, 2, 2]])},
            {"image_grid_thw": None},
        ):
            with pytest.raises(InputError, match="image_grid_thw"):
                model.logits(np.array([[5, 6]]), pixel_values=np.zeros((4, 96), np.float32), **images)


def tensors_of(path):
    return load_file(path / "model.safetensors")


def write(path, tensors):
    path.mkdir()
    shutil.copy(GOLDEN / "config.json", path)
    save_file(tensors, path / "model.safetensors")
    return path


def same(first, second):
    pairs = zip(*(nnx.to_flat_state(nnx.state(load_model(path))) for path in (first, second)), strict=True)
    return all(np.array_equal(a[...], b[...]) for (_, a), (_, b) in pairs)


def test_save_writes_what_transformers_wrote(tmp_path):
    module = load_model(GOLDEN)
    save_hf(tmp_path, module.config, module, np.float32)
    mine, theirs = tensors_of(tmp_path), tensors_of(GOLDEN)
    assert mine.keys() == theirs.keys()
    unread = {f"vision_tower.post_layernorm.{leaf}" for leaf in ("weight", "bias")}
    assert all(np.array_equal(mine[name], theirs[name]) for name in mine.keys() - unread)


def test_files_without_the_norm_that_nothing_reads(tmp_path):
    kept = {name: tensor for name, tensor in tensors_of(GOLDEN).items() if "post_layernorm" not in name}
    assert same(write(tmp_path / "hub", kept), GOLDEN)


def test_the_names_that_transformers_5_has_in_memory(tmp_path):
    def name(old):
        new = old.replace("language_model.model.", "model.language_model.").replace("language_model.lm_head", "lm_head")
        for part in ("vision_tower", "multi_modal_projector"):
            new = f"model.{new}" if new.startswith(part) else new
        return new.replace("experts.fc1.weight", "experts.gate_up_proj").replace(
            "experts.fc2.weight", "experts.down_proj"
        )

    assert same(write(tmp_path / "five", {name(old): tensor for old, tensor in tensors_of(GOLDEN).items()}), GOLDEN)


def test_missing_and_misshaped_tensors_are_named(tmp_path):
    tensors = tensors_of(GOLDEN)
    del tensors["multi_modal_projector.query"]
    patches = "vision_tower.embeddings.patch_embedding.weight"
    tensors[patches] = np.ascontiguousarray(tensors[patches][:, :, :2])
    with pytest.raises(InputError, match=rf"1 missing: multi_modal_projector\.query; .*{patches} is \(16, 3, 2, 4\)"):
        load_model(write(tmp_path / "broken", tensors))


def test_a_processor_that_counts_other_tokens_than_the_model(directory, tmp_path):
    shutil.copytree(directory, tmp_path / "other")
    (tmp_path / "other" / "processor_config.json").write_text(json.dumps({"size_conversion": {"490": 5}}))
    with load(tmp_path / "other") as model, pytest.raises(InputError, match="image tokens"):
        model.generate([ITEMS[0].question], [ITEMS[0].image])


def test_the_image_token_is_the_tokenizers(directory):
    config = json.loads((directory / "config.json").read_text())
    assert PROCESSOR.build_tokenizer().id_to_token(config["image_token_index"]) == word_processor.IMAGE_PAD
