"""Run by an interpreter with torch, transformers and accelerate, not imported: one JSON argument, one JSON line out.

A model with random weights in bfloat16; what does not fit into `device_bytes` stays in host memory.
"""

import json
import sys
import time

import accelerate
import torch
import transformers


def main() -> None:
    wanted = json.loads(sys.argv[1])
    values = dict(wanted["config"])
    config = transformers.AutoConfig.for_model(values.pop("model_type"), **values)
    transformers.utils.logging.disable_progress_bar()
    with accelerate.init_empty_weights():
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model.to_empty(device="cpu")
    for parameter in model.parameters():  # one pattern: drawing tens of billions of numbers takes minutes
        parameter.data.fill_(0.01)
    limits = {0: wanted["device_bytes"], "cpu": 10**15}
    where = accelerate.infer_auto_device_map(
        model, max_memory=limits, no_split_module_classes=model._no_split_modules, dtype=torch.bfloat16
    )
    model = accelerate.dispatch_model(model.eval(), device_map=where)
    token = torch.ones((wanted["batch_size"], 1), dtype=torch.long, device="cuda")
    with torch.inference_mode():
        out = model(token, use_cache=True)
        begin = time.perf_counter()
        for _ in range(wanted["new_tokens"]):
            out = model(token, past_key_values=out.past_key_values, use_cache=True)
            out.logits.float().cpu()
        seconds = time.perf_counter() - begin
    speed = wanted["batch_size"] * wanted["new_tokens"] / seconds
    version = f"accelerate {accelerate.__version__}, transformers {transformers.__version__}"
    print(json.dumps({"tokens_per_second": speed, "version": version}), flush=True)


main()
