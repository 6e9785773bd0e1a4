"""What a folder holds that is no checkpoint of ours, and what to do about it: for the error of who named it."""

from pathlib import Path

from expertflow_jax.errors import brief

_CONVERT = "load it with transformers' from_pretrained and save_pretrained it to another folder"
_FORMS = (  # the first that fits: pattern, what it is, remedy
    ("adapter_config.json", "an adapter", "merge it into its base model (PEFT's merge_and_unload), and save that"),
    ("predictor_config.json", "a routing path predictor", "name it as the predictor, and its model as the model"),
    ("*.gguf", "weights as GGUF", "name a folder with the safetensors that they were made from"),
    ("consolidated*.safetensors", "weights in their maker's own form", "download model*.safetensors too"),
    ("model-*-of-*.safetensors", "shards without an index", "download model.safetensors.index.json too"),
    ("pytorch_model*.bin", "pickled weights, which could run programs and are not read", _CONVERT),
    ("*.pt", "pickled weights, which could run programs and are not read", _CONVERT),
    ("*.pth", "pickled weights, which could run programs and are not read", _CONVERT),
    ("*.h5", "weights of TensorFlow", _CONVERT),
    ("*.msgpack", "weights of Flax", _CONVERT),
    ("*.onnx", "a graph of ONNX", "name a folder with the safetensors that it was made from"),
    ("*/config.json", "checkpoints", "name one of these"),
)


def explain(folder: Path) -> str:
    """What the folder holds and what to do, for the end of an error about a file that the folder lacks."""
    for pattern, form, remedy in _FORMS:
        names = sorted(str(path.relative_to(folder)) for path in folder.glob(pattern))
        if names:
            return f"; the folder holds {form} ({brief(names[0])}): {remedy}"
    if not any(folder.iterdir()):
        return "; the folder is empty: download the checkpoint into it, or name another"
    return "; name a folder with config.json and the weights as safetensors, all shards present"
