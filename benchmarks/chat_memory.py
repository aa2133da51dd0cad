"""What a process takes while a conversation goes on: one row every few turns of a long one with short answers.

    python -m benchmarks.chat_memory --turns 200

Linux with glibc only. Per row, in MiB: resident memory, what of the heap is in use and what of it lies free
(``mallinfo2``), bytes of all tensors that Python knows, and those that the conversation says it holds. The last line of
standard output is JSON.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import time
from typing import Any

THINGS = [
    "the sea",
    "bread",
    "a lamp",
    "winter",
    "a key",
    "rain",
    "a ship",
    "glass",
    "the moon",
    "salt",
    "a door",
    "wool",
]
FACT = "My dog is called Pepper. Remember that."


class _Heap(ctypes.Structure):
    _fields_ = [
        (name, ctypes.c_size_t)
        for name in (
            "arena",
            "ordblks",
            "smblks",
            "hblks",
            "hblkhd",
            "usmblks",
            "fsmblks",
            "uordblks",
            "fordblks",
            "keep",
        )
    ]


def heap() -> tuple[int, int]:
    """Bytes of glibc's heap that are in use, and that are free and kept."""
    count = ctypes.CDLL(None).mallinfo2
    count.restype = _Heap
    found = count()
    return found.uordblks + found.hblkhd, found.fordblks


def tensors() -> int:
    """Bytes of all tensors that are alive."""
    import torch

    sizes = {}
    for thing in gc.get_objects():
        if type(thing) in (torch.Tensor, torch.nn.Parameter) and thing.device.type == "cpu":
            storage = thing.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
    return sum(sizes.values())


def row(turn: int, chat: Any, seconds: float) -> dict[str, float]:
    from kvcli.bench.peak import resident

    used, free = heap()
    sizes = {"resident": resident("VmRSS"), "used": used, "free": free, "tensors": tensors(), "held": chat.nbytes}
    found = {name: round(size / 2**20, 1) for name, size in sizes.items()}
    return {
        "turn": turn,
        **found,
        "objects": len(gc.get_objects()),
        "absorbed": len(chat.evictions),
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--recipe", default="locret(budget=512)")
    parser.add_argument("--turns", type=int, default=200)
    parser.add_argument("--every", type=int, default=10)
    parser.add_argument("--tokens", type=int, default=6, help="of an answer, at most")
    parser.add_argument("--room", type=int, default=512, help="tokens of turns before they are absorbed")
    parser.add_argument("--chunk", type=int, default=512)
    options = parser.parse_args()

    import torch

    from benchmarks.passkey import load
    from kvcli.chat.conversation import ChatContext, Conversation
    from kvcli.engine.prefill import new_prefill_cache
    from kvcli.engine.prompt import Prompt
    from kvcli.recipe import parse
    from kvcli.retaining_heads.discovery import attach

    torch.set_num_threads(1)
    model, recipe = load(options.model), parse(options.recipe)
    if recipe.policy.needs_heads:
        attach(model)
    for weights in model.module.parameters():
        weights.sum()  # their file is mapped: rows would else arrive with the words that need them

    def base() -> ChatContext:
        model.rotary.fix_length(2 * (options.room + options.chunk))
        work = new_prefill_cache(model, recipe, 0, chunk=options.chunk)
        return ChatContext(Prompt(model.tokenizer), recipe, options.chunk, work, None, options.room)

    chat, rows, began = Conversation(model, base), [], time.perf_counter()
    for turn in range(1, options.turns + 1):
        text = FACT if turn == 1 else f"Say one word about {THINGS[turn % len(THINGS)]}."
        for _ in chat.ask(text, max_tokens=options.tokens):
            pass
        if turn == 1 or turn % options.every == 0:
            rows.append(row(turn, chat, time.perf_counter() - began))
            print(rows[-1], flush=True)
    print(json.dumps({"model": options.model, "recipe": str(recipe), "room": options.room, "rows": rows}))


if __name__ == "__main__":
    main()
