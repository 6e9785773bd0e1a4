"""Run by an interpreter with torch and transformers, not imported: CHECKPOINT THREADS NEW_TOKENS, then JSON lines.

The first line in has `input_ids`; every further one asks for one repeat of a `phase` and is answered with `seconds`.
"""

import json
import sys
import time

import torch
import transformers


def main() -> None:
    checkpoint, threads, new_tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    torch.set_num_threads(threads)
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32).eval()
    ids = torch.tensor(json.loads(sys.stdin.readline())["input_ids"])
    answer({"name": f"transformers {transformers.__version__} (torch {torch.__version__})"})
    with torch.inference_mode():
        for line in sys.stdin:
            phase = json.loads(line)["phase"]
            if phase == "prefill":
                begin = time.perf_counter()
                model(ids, use_cache=True, logits_to_keep=1).logits.numpy()
            else:
                out = model(ids, use_cache=True, logits_to_keep=1)
                token, cache = out.logits[:, -1:].argmax(-1), out.past_key_values
                begin = time.perf_counter()
                for _ in range(new_tokens):
                    out = model(token, past_key_values=cache, use_cache=True, logits_to_keep=1)
                    out.logits.numpy()
            answer({"seconds": time.perf_counter() - begin})


def answer(value: dict) -> None:
    print(json.dumps(value), flush=True)


main()
