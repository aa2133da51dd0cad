"""What a training step costs, measured, and from that an estimate of a whole training on another machine.

    python -m benchmarks.training_step --text great_expectations.txt --tokens 1400 --steps 8
    python -m benchmarks.training_step --text book.txt --shape benchmarks/gpu/shapes/llama-3.1-8b --layers 2
    python -m benchmarks.training_step --text great_expectations.txt --shape qwen3.5-9b --layers 4
    python -m benchmarks.training_step --text docs/log.md --shape FOLDER --tokenizer FOLDER --device cuda:0

A step reads an example, asks its questions and teaches the heads. Its time is compared with the machine's matrix
products in the model's shapes, timed in the same run; a machine with ``--ceiling`` TFLOP/s that reaches the same share
takes the time that is printed for ``--of`` steps. ``--shape``, a folder or an alias, has random weights and the default
model's tokenizer, or that of ``--tokenizer``; with ``--layers`` only so many are made, and the estimate is for all. The
last line is JSON.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks.gpu.output import record
from benchmarks.passkey import load


def shaped(folder: Path, layers: int | None, device: str | None, tokenizer: str | None) -> tuple[Any, int]:
    """A random model of some of the layers of a shape, and how many there would be."""
    from transformers import AutoTokenizer

    from kvcli.models import catalogue
    from kvcli.models.random_weights import build

    known = catalogue.ALIASES.get(str(folder))
    config = known.config if known else json.loads((folder / "config.json").read_text())
    depth: int = config["num_hidden_layers"]
    config["num_hidden_layers"] = layers or depth
    config.pop("quantization_config", None)
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][: layers or depth]
    words = (
        AutoTokenizer.from_pretrained(tokenizer, trust_remote_code=False)
        if tokenizer
        else load("smollm2-135m").tokenizer
    )
    config["vocab_size"] = max(config["vocab_size"], len(words))
    with tempfile.TemporaryDirectory() as made:
        Path(made, "config.json").write_text(json.dumps(config))
        model = build(Path(made), device=device)
    model.tokenizer = words
    return model, depth


def flop(model: Any, width: int, tokens: int, asked: int) -> float:
    """Floating-point operations of reading, of the question, and of the heads: forward pass and matrix gradients."""
    from kvcli.bench import roofline
    from kvcli.retaining_heads.module import shapes

    heads: float = 4.0 * tokens * sum(size for size, _ in shapes(model.spec)) * width
    read: float = roofline.full_flop(model.spec, tokens + asked)
    return read + heads


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=1400)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--labels", default="prob")
    parser.add_argument("--shape", type=Path)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--tokenizer", metavar="FOLDER")
    parser.add_argument("--device")
    parser.add_argument("--ceiling", type=float, default=150.0, help="TFLOP/s of the other machine")
    parser.add_argument("--of", type=int, default=2000, help="steps of the whole training")
    options = parser.parse_args()
    from kvcli.bench import roofline
    from kvcli.engine.prompt import Prompt
    from kvcli.retaining_heads.data import Corpus
    from kvcli.retaining_heads.trainer import Trainer, TrainingOptions, make_example

    if options.shape:
        model, depth = shaped(options.shape, options.layers, options.device, options.tokenizer)
    else:
        model, depth = load("smollm2-135m"), None
    depth = depth or model.spec.layers
    there = options.layers or depth
    prompt, settings = Prompt(model.tokenizer), TrainingOptions(labels=options.labels)
    text = options.text.read_text()
    corpus = Corpus([text], [], tokens=(options.tokens, options.tokens), question_first=0.0)
    trainer = Trainer(model, settings, corpus)
    read, taught, flops, sizes = [], [], [], []
    for number in range(options.steps + 1):  # the first step warms up
        example = corpus.example(number)
        kind = settings.kind(corpus.chance(number, "label"))
        began = perf_counter()
        given = make_example(model, prompt, example, settings, kind=kind)
        roofline.synchronize(model.spec.device)
        between = perf_counter()
        trainer.train_step(given)
        roofline.synchronize(model.spec.device)
        ended = perf_counter()
        tokens = len(given.features[0])
        asked = sum(len(prompt.question(q)) + len(prompt.answer(a)) for q, a in example.turns)
        asked = tokens if kind == "repeat" else asked
        read.append(between - began)
        taught.append(ended - between)
        flops.append(flop(model, settings.width, tokens, asked))
        sizes.append(tokens + asked)
    ceiling = roofline.matmul(model.spec, 512)
    step = median(a + b for a, b in zip(read[1:], taught[1:], strict=True))
    share = median(flops[1:]) / step / ceiling
    whole = median(flops[1:]) * depth / there
    record(
        {
            "key": "training",
            "model": model.name,
            "layers": [there, depth],
            "labels": options.labels,
            "tokens": median(sizes[1:]),
            "read_s": round(median(read[1:]), 3),
            "learn_s": round(median(taught[1:]), 3),
            "tflop": round(median(flops[1:]) / 1e12, 3),
            "ceiling_gflops": round(ceiling / 1e9, 1),
            "share": round(share, 3),
            "whole_tflop": round(whole / 1e12, 2),
            f"minutes_of_{options.of}_steps_at_{options.ceiling:g}_tflops": round(
                options.of * whole / (share * options.ceiling * 1e12) / 60, 1
            ),
        }
    )


if __name__ == "__main__":
    main()
