"""The other side of :mod:`benchmarks.peers.presses`: runs in kvpress's own environment and knows nothing of kvcli.

Reads cases as JSON lines on standard input (``{"document": ids, "questions": [ids], "press": name, "keep": units,
"max_tokens": n}``) and writes one line of answers for each, with kvpress's own pipeline:

    python presses_worker.py MODEL_FOLDER THREADS
"""

import json
import sys
import time

import torch
from kvpress import (
    ExpectedAttentionPress,
    KeyDiffPress,
    KnormPress,
    KVPressTextGenerationPipeline,
    KVzipPress,
    SnapKVPress,
    TOVAPress,
)
from transformers import AutoModelForCausalLM, AutoTokenizer

PRESSES = {
    "ExpectedAttention": ExpectedAttentionPress,
    "KeyDiff": KeyDiffPress,
    "SnapKV": SnapKVPress,
    "KVzip": KVzipPress,
    "TOVA": TOVAPress,
    "Knorm": KnormPress,
}


@torch.inference_mode()
def main() -> None:
    folder, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.bfloat16, attn_implementation="sdpa", trust_remote_code=False
    ).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    pipe = KVPressTextGenerationPipeline(model=model, tokenizer=tokenizer)
    for line in sys.stdin:
        case = json.loads(line)
        n = len(case["document"])
        # kvpress keeps int(n * (1 - ratio)) units of each head; the half keeps rounding from losing one.
        press = None
        if case["press"] and n > case["keep"]:
            press = PRESSES[case["press"]](compression_ratio=1 - (case["keep"] + 0.5) / n)
        began = time.perf_counter()
        answers = pipe._forward(
            {
                "context_ids": torch.tensor([case["document"]]),
                "questions_ids": [torch.tensor([ids]) for ids in case["questions"]],
            },
            max_new_tokens=case["max_tokens"],
            press=press,
        )
        print(json.dumps({"answers": answers, "seconds": round(time.perf_counter() - began, 2)}), flush=True)


if __name__ == "__main__":
    main()
