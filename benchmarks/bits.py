"""What few bits cost in answers: one reading held at 16, 8, 4 and 2 bits, beside transformers' quanto cache.

    pip install optimum-quanto
    python -m benchmarks.bits frankenstein.txt --length 2K --cases 12 --out bits.jsonl

Needles of ``kvcli eval`` in a text within the model's window, so that the whole text can be held. All variants share
the reading and say their own answers. The divergence is the mean of KL(dense ‖ variant) over the tokens of the dense
answer, which all are fed. quanto gets the transformers model's own attention, the same ids, and is compared with that
model's own dense cache; its groups are of 64 numbers, and its newest 128 units stay
in bfloat16. The last line is JSON.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from benchmarks.passkey import _end, load
from kvcli.cache.context import freeze
from kvcli.engine.generate import generate, new_decode_cache
from kvcli.engine.prefill import prefill_steps
from kvcli.engine.prompt import Prompt
from kvcli.evaluate import build_cases, tasks
from kvcli.evaluate.haystack import Haystack
from kvcli.evaluate.metrics import score
from kvcli.evaluate.token_counter import TokenCounter
from kvcli.events import Answer
from kvcli.recipe import parse
from kvcli.retaining_heads import discovery

HOLDS = ["int8", "kivi(bits=8)", "kivi(bits=4)", "kivi(bits=2)", "turbo(bits=8)", "turbo(bits=4)", "turbo(bits=2)"]
QUANTO = [4, 2]


def divergence(logits: Tensor, dense: Tensor) -> float:
    """Mean KL(dense ‖ other) in nats over rows of logits ``[m, vocab]``."""
    p, q = dense.float().log_softmax(-1), logits.float().log_softmax(-1)
    return float((p.exp() * (p - q)).sum(-1).mean())


def ours(model: Any, fill: Any, hold: str, keep: str, asked: list[int], said: list[int] | None, longest: int) -> Any:
    """Answer, logits over the answer that is fed, and effective bits of one hold."""
    context = freeze(fill, parse(f"{keep}+{hold}").storage, release=False)
    tail = new_decode_cache(model, context)
    text = next(e.text for e in generate(model, tail, asked, max_tokens=longest) if isinstance(e, Answer))
    said = said if said is not None else model.tokenizer(text, add_special_tokens=False)["input_ids"]
    tail.rewind()
    logits = model.forward(torch.tensor(asked + said), tail, logits="all")[len(asked) - 1 :]
    return text, logits, context.bits, said


def theirs(
    model: Any, make: Callable[[Any], Any], ids: list[int], asked: list[int], said: list[int] | None, longest: int
) -> Any:
    """The same of a transformers cache, with the model's own attention."""
    with model.reference() as module:

        def read() -> Any:
            cache = make(module.config)
            module(input_ids=torch.tensor([ids]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            return cache

        cache, new, given = read(), list(asked), []
        for _ in range(longest):
            out = module(input_ids=torch.tensor([new]), past_key_values=cache, use_cache=True, logits_to_keep=1)
            token = int(out.logits[0, -1].argmax())
            if token in model.eos:
                break
            given.append(token)
            new = [token]
        said = given if said is None else said
        out = module(input_ids=torch.tensor([asked + said]), past_key_values=read(), use_cache=True)
        logits = out.logits[0, len(asked) - 1 :]
    return model.tokenizer.decode(given), logits, said


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--length", default="2K")
    parser.add_argument("--cases", type=int, default=12)
    parser.add_argument("--keep", default="full")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    from transformers.cache_utils import DynamicCache, QuantizedCache

    torch.set_num_threads(options.threads)
    model = load("smollm2-135m")
    discovery.attach(model, None)
    prompt = Prompt(model.tokenizer)
    counter = TokenCounter(prompt)
    jobs = build_cases.case_specs(
        [tasks.lookup("needle")],
        counter=counter,
        haystack=Haystack(counter, options.text.read_text(encoding="utf-8"), options.text.name),
        data=None,
        lengths=build_cases.lengths(options.length),
        cases=options.cases,
        seed=0,
    )
    rows: list[dict[str, Any]] = []
    if options.out.exists():
        rows = [json.loads(line) for line in options.out.read_text().splitlines()]
    done = {row["case"] for row in rows}
    with options.out.open("a") as file:
        for _, job in jobs:
            if job.number in done:
                continue
            case = job.make()
            (question,) = case.questions
            ids, asked = prompt.document(case.text), prompt.question(question.text)
            fill = _end(prefill_steps(model, ids, parse(options.keep)))
            row: dict[str, Any] = {"case": job.number, "variants": {}}
            dense = said = None
            for hold in ["dense", *HOLDS]:
                text, logits, bits, said = ours(model, fill, hold, options.keep, asked, said, case.max_tokens)
                dense = logits if dense is None else dense
                right = score(text, question)
                row["variants"][hold] = {"right": right, "bits": bits, "kl": divergence(logits, dense), "answer": text}
            dense = said = None
            for bits in [16, *QUANTO] if options.keep == "full" else []:

                def make(config: Any, bits: int = bits) -> Any:
                    return DynamicCache() if bits == 16 else QuantizedCache("quanto", config, nbits=bits)

                text, logits, said = theirs(model, make, ids, asked, said, case.max_tokens)
                dense = logits if dense is None else dense
                name = "transformers" if bits == 16 else f"quanto {bits}"
                kl = divergence(logits, dense)
                row["variants"][name] = {
                    "right": score(text, question),
                    "bits": bits if bits == 16 else bits + 32 / 64,
                    "kl": kl,
                    "answer": text,
                }
            rows.append(row)
            file.write(json.dumps(row) + "\n")
            file.flush()
    table: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in rows:
        for name, cell in row["variants"].items():
            table[name].append(cell)
    found = {}
    for name, cells in table.items():
        right, n = sum(c["right"] for c in cells), len(cells)
        kl = sorted(c["kl"] for c in cells)[n // 2]
        same = sum(c["answer"] == d["answer"] for c, d in zip(cells, table["dense"], strict=True))
        found[name] = {"right": right, "cases": n, "bits": cells[0]["bits"], "kl": kl, "same": same}
        print(f"{name:14} {cells[0]['bits']:6.2f} bits  {right:g}/{n} right  {same}/{n} as dense  KL {kl:.4f} (median)")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
