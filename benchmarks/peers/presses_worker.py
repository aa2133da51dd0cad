"""The other side of :mod:`benchmarks.peers.presses`: runs in kvpress's own environment and knows nothing of kvcli.

Reads cases as JSON lines on standard input (``{"document": ids, "questions": [ids], "press": name, "keep": units,
"max_tokens": n, "aware": bool}``) and writes one line of answers for each, with kvpress's own pipeline:

    python presses_worker.py MODEL_FOLDER THREADS

With ``aware`` each question but for its last tokens ends the text that is compressed, as in kvpress's own evaluation.
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
    PyramidKVPress,
    RandomPress,
    SnapKVPress,
    StreamingLLMPress,
    ThinKPress,
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
    "PyramidKV": PyramidKVPress,
    "Random": RandomPress,
    "StreamingLLM": lambda compression_ratio: StreamingLLMPress(compression_ratio, n_sink=48),
    "ThinK": lambda **_: ThinKPress(key_channel_compression_ratio=0.4),  # keeps all units
}
END = 4
"""Last tokens of a question, which a text does not end with."""


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
        parts = [(case["document"], case["questions"])]
        if case.get("aware"):
            parts = [([*case["document"], *ids[:-END]], [ids[-END:]]) for ids in case["questions"]]
        began, answers = time.perf_counter(), []
        for text, questions in parts:
            # kvpress keeps int(n * (1 - ratio)) units of each head; the half keeps rounding from losing one.
            n, keep = len(text), case["keep"] + len(text) - len(case["document"])
            press = (
                PRESSES[case["press"]](compression_ratio=1 - (keep + 0.5) / n) if case["press"] and n > keep else None
            )
            inputs = {"context_ids": torch.tensor([text]), "questions_ids": [torch.tensor([ids]) for ids in questions]}
            answers += pipe._forward(inputs, max_new_tokens=case["max_tokens"], press=press)
        print(json.dumps({"answers": answers, "seconds": round(time.perf_counter() - began, 2)}), flush=True)


if __name__ == "__main__":
    main()
