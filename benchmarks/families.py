"""Every language model type of transformers, small and with wide random weights, against its own attention.

    python -m benchmarks.families --out all.jsonl         # all types, one row each: an hour on one core
    python -m benchmarks.families qwen3_5 gpt_oss         # some
    python -m benchmarks.families --quick --out all.jsonl # one width of window and one recipe: three minutes
    python -m benchmarks.families --read --out all.jsonl  # memory and speed of three kinds of models at 8K tokens
    python -m benchmarks.families --write all.jsonl       # write docs/results/data/models.jsonl from such rows

A type passes if kvcli loads it (the self-test), and 400 tokens in chunks of 57 and a question in parts of five give the
logits of one full forward pass by an untouched copy, with windows of 24 and of 100; then four recipes must run, answer,
give the same answer after a rewind, and evict a turn. All weights are drawn wide, norms, biases and sinks included, so
that a missed rotation, norm or factor shows. Each type runs in a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from benchmarks.small_models import build

COMMON = (
    ("qwen3_5", "Qwen 3.5, 3.6, 3.8", "refused"),
    ("qwen3_5_moe", "Qwen 3.5 and 3.6 MoE (35B-A3B, 122B-A10B)", "refused"),
    ("gemma4", "Gemma 4", "fault"),
    ("gpt_oss", "gpt-oss", "fault"),
    ("qwen3", "Qwen3", "pass"),
    ("qwen3_moe", "Qwen3 MoE, Qwen3-Coder", "pass"),
    ("qwen3_vl", "Qwen3-VL", "not loaded"),
    ("llama", "Llama 3.x, SmolLM2, most fine-tunes", "pass"),
    ("gemma3", "Gemma 3", "pass"),
    ("qwen2", "Qwen2.5, R1 distills", "pass"),
    ("mistral3", "Mistral Small 3.x, Devstral, Magistral", "not loaded"),
    ("ministral3", "Ministral 3", "wrong"),
    ("mistral", "Mistral 7B, Nemo", "pass"),
    ("phi3", "Phi-4, Phi-4-mini", "pass"),
    ("qwen3_next", "Qwen3-Next, Qwen3-Coder-Next", "refused"),
    ("glm4_moe_lite", "GLM-4.7-Flash", "refused"),
    ("mistral4", "Mistral Small 4", "not loaded"),
    ("nemotron_h", "Nemotron 3 Nano", "refused"),
    ("lfm2", "LFM2, LFM2.5", "refused"),
    ("lfm2_moe", "LFM2 MoE", "refused"),
    ("granitemoehybrid", "Granite 4 H", "refused"),
    ("deepseek_v3", "DeepSeek V3, R1", "refused"),
    ("deepseek_v2", "DeepSeek V2-Lite, Coder-V2-Lite", "refused"),
    ("olmo3", "OLMo 3", "fault"),
    ("smollm3", "SmolLM3", "pass"),
    ("qwen2_5_vl", "Qwen2.5-VL", "not loaded"),
    ("gemma3n_text", "Gemma 3n", "fault"),
    ("laguna", "Laguna XS", "fault"),
    ("glm4_moe", "GLM-4.5-Air", "pass"),
)
"""Types that people ran locally in 2026, most downloaded first, the models of each, and what became of it in kvcli
9bfd80a (27 November 2026)."""

_LINEAR, _LOCAL = "linear_attention", "sliding_attention"
READ: dict[str, tuple[int, dict[str, Any]]] = {
    "qwen3_5_text": (0, {"layer_types": [_LINEAR, _LINEAR, _LINEAR, "full_attention"] * 2, "linear_key_head_dim": 64}),
    "gemma4_text": (512, {"layer_types": [*[_LOCAL] * 5, "full_attention"] * 2, "global_head_dim": 128}),
    "gpt_oss": (128, {"layer_types": [_LOCAL, "full_attention"] * 4}),
}
"""Types whose reading is measured: the window, and the kinds of layers as in published models."""

TOKENS, CHUNK, PART, WINDOWS = 400, 57, 5, (24, 100)
RECIPES = ("full", "keydiff(budget=64)", "h2o(budget=64)+int8", "full+infinigen")
TOLERANCE = 1e-4

_MARK = "verdict: "


def judge(kind: str, window: int, recipes: tuple[str, ...] = RECIPES) -> dict[str, Any]:
    """What becomes of a type: ``verdict`` (pass, refused, wrong, fails, fault, not built), ``error``, ``message``."""
    from kvcli.errors import KvcliError
    from kvcli.models.load import wrap
    from kvcli.models.random_weights import NullTokenizer

    try:
        module = build(kind, window)
        ids = _ids(module, TOKENS + 4 * PART)
        untouched = copy.deepcopy(module)
        with torch.inference_mode():
            expected = untouched(input_ids=ids[None], use_cache=False).logits[0, TOKENS:]
        if not bool(expected.isfinite().all()):
            raise ValueError("its logits are not finite")
    except Exception as error:  # as many kinds as there are models
        return {"verdict": "not built", "message": f"{type(error).__name__}: {_line(error)}"}
    try:
        model = wrap(module, NullTokenizer(), name=kind, fingerprint=None)
    except KvcliError as error:
        return {"verdict": "refused", "message": _line(error)}
    except Exception as error:
        return {"verdict": "fault", "message": f"{type(error).__name__}: {_line(error)}"}
    try:
        error = _distance(_read(model, ids, TOKENS), expected)
        if not error <= TOLERANCE:
            return {"verdict": "wrong", "error": error, "message": ""}
        for recipe in recipes:
            _use(model, ids[:TOKENS].tolist(), ids[TOKENS:].tolist(), recipe)
    except Exception as failed:
        return {"verdict": "fails", "message": f"{type(failed).__name__}: {_line(failed)}"}
    return {"verdict": "pass", "error": error, "message": ""}


def read(kind: str, tokens: int = 8192) -> Iterator[dict[str, Any]]:
    """Memory and speed of ``full`` and of a budget of 1,024 in turns, twice each; a row per recipe, the faster one."""
    from benchmarks.provenance import provenance
    from kvcli.engine.prefill import prefill_steps
    from kvcli.events import drain
    from kvcli.models.load import wrap
    from kvcli.models.random_weights import NullTokenizer
    from kvcli.planning.memory import plan
    from kvcli.recipe import parse

    window, layout = READ[kind]
    sizes = {"hidden_size": 512, "intermediate_size": 1536, "num_attention_heads": 8, "head_dim": 64}
    sizes |= {"num_hidden_layers": len(layout["layer_types"]), "max_position_embeddings": 2 * tokens}
    module = build(kind, window or 24, **sizes, **layout)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(64**0.5 / 512**0.5 if parameter.dim() > 1 else 1.0)
    model = wrap(module, NullTokenizer(), name=kind, fingerprint=None)
    ids = _ids(module, tokens).tolist()
    made: dict[str, dict[str, Any]] = {}
    for recipe in ("full", "keydiff(budget=1024)") * 2:
        began = perf_counter()
        work = drain(prefill_steps(model, ids, parse(recipe), chunk=512))
        speed = tokens / (perf_counter() - began)
        planned = plan(model.spec, parse(recipe), tokens=tokens, chunk=512, tail=0)
        made[recipe] = {
            "kept": work.kept,
            "planned_bytes": planned.prefill + planned.workspace,
            "taken_bytes": work.nbytes,
            "tokens_per_s": round(max(speed, made.get(recipe, {}).get("tokens_per_s", 0)), 1),
        }
    for recipe, row in made.items():
        times = round(row["tokens_per_s"] / made["full"]["tokens_per_s"], 2)
        facts = provenance("OMP_NUM_THREADS=1 python -m benchmarks.families --read --out FILE", n=2)
        yield {
            "table": "models-reading",
            "type": kind,
            "recipe": recipe,
            "tokens": tokens,
            **row,
            "times": times,
        } | facts


def _ids(module: PreTrainedModel, count: int) -> Tensor:
    from kvcli.models.trial import ids

    return ids(module, count)[0]


def _read(model: Any, ids: Tensor, tokens: int) -> Tensor:
    """Logits of everything after ``tokens`` tokens, which are read in chunks; the rest comes in parts."""
    from kvcli.engine.generate import new_decode_cache
    from kvcli.engine.prefill import prefill
    from kvcli.events import drain
    from kvcli.recipe import parse

    context = drain(prefill(model, ids[:tokens].tolist(), parse("full"), chunk=CHUNK, horizon=len(ids)))
    cache = new_decode_cache(model, context)
    parts = []
    for part in ids[tokens:].split(PART):
        parts.append(model.forward(part, cache, logits="all"))
        cache.extend(len(part))
    return torch.cat(parts)


def _use(model: Any, body: list[int], question: list[int], recipe: str) -> None:
    """Read, answer, rewind, answer again, and evict the turn.

    Raises:
        ValueError: the second answer is another one.
    """
    from kvcli.engine.generate import generate, new_decode_cache
    from kvcli.engine.prefill import evict_turns, freeze_and_keep, prefill_steps
    from kvcli.events import drain
    from kvcli.recipe import parse

    chosen = parse(recipe)
    work = drain(prefill_steps(model, body, chosen, chunk=CHUNK))
    cache = new_decode_cache(model, freeze_and_keep(work, chosen))
    answers = []
    for _ in range(2):
        cache.rewind()
        answers.append([event.id for event in generate(model, cache, question, max_tokens=8) if hasattr(event, "id")])
    if answers[0] != answers[1]:
        raise ValueError(f"{recipe}: another answer after a rewind")
    new_decode_cache(model, drain(evict_turns(model, work, question, chosen, chunk=CHUNK)))


def _distance(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).norm() / b.float().norm())


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]


def kinds() -> Iterator[tuple[str, bool]]:
    """All types of transformers' causal and image-text mappings, and whether the type has a causal class."""
    causal = {k for k in CONFIG_MAPPING if _maps(MODEL_FOR_CAUSAL_LM_MAPPING, k)}
    images = {k for k in CONFIG_MAPPING if _maps(MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING, k)}
    known = [kind for kind, *_ in COMMON]
    for kind in [*known, *sorted((causal | images) - set(known))]:
        yield kind, kind in causal


def _maps(mapping: Any, kind: str) -> bool:
    return kind in mapping._model_mapping


def rows(wanted: list[str], *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row per type, judged in processes of their own: one that ends early fails its type, and the next goes on."""
    from benchmarks.provenance import provenance

    names, causal = {kind: facts for kind, *facts in COMMON}, dict(kinds())
    left = [kind for kind in causal if not wanted or kind in wanted]
    while left:
        for kind, found in _apart(left, quick):
            left.remove(kind)
            worst = next((one for one in found if one["verdict"] != "pass"), found[0])
            errors = [one["error"] for one in found if "error" in one]
            yield {
                "table": "models-common" if kind in names else "models-others",
                "type": kind,
                **dict(zip(("models", "before"), names.get(kind, ()), strict=False)),
                "class": "text" if causal[kind] else "images and text",
                "verdict": worst["verdict"],
                **({"error": max(errors)} if errors else {}),
                "message": worst["message"],
                **provenance(f"python -m benchmarks.families {'--quick ' * quick}--out FILE", n=1),
            }


def _apart(left: list[str], quick: bool) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Judge types in another process until it ends."""
    command = [sys.executable, "-m", "benchmarks.families", *["--quick"] * quick, "--judge", *left]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "TRANSFORMERS_VERBOSITY": "error"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=environment
    ) as child:
        judged = 0
        for line in child.stdout or ():
            if line.startswith(_MARK):
                yield left[0], json.loads(line.removeprefix(_MARK))
                judged += 1
    if child.returncode or not judged:
        ended = {"verdict": "fault", "message": f"its process ended with {child.returncode}"}
        yield left[0], [ended]


def table(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows for docs/results/data: one per common type, and one per verdict and class of the others."""
    common = [row for row in found if row["table"] == "models-common"]
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in found:
        if row["table"] == "models-others":
            groups.setdefault((row["verdict"], row["class"]), []).append(row)
    others = []
    for (verdict, kind), group in sorted(groups.items(), key=lambda item: -len(item[1])):
        types = ", ".join(row["type"] for row in group)
        facts = {name: group[0][name] for name in ("command", "date", "machine")}
        others.append(
            {"table": "models-others", "verdict": verdict, "class": kind, "number": len(group), "types": types, "n": 1}
            | facts
        )
    return common + others


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("types", nargs="*", help="types; all by default")
    parser.add_argument("--read", action="store_true", help="measure memory and speed instead")
    parser.add_argument("--quick", action="store_true", help="one width of window and one recipe")
    parser.add_argument("--out", type=Path, help="append a row per type to this file")
    parser.add_argument("--write", type=Path, help="write docs/results/data/models.jsonl from the rows in this file")
    parser.add_argument("--judge", nargs="+", metavar="TYPE", help="judge types in this process, as JSON")
    options = parser.parse_args()
    if options.judge:
        warnings.simplefilter("ignore")
        torch.set_num_threads(1)
        windows, recipes = (WINDOWS[:1], RECIPES[1:2]) if options.quick else (WINDOWS, RECIPES)
        for kind in options.judge:
            print(_MARK + json.dumps([judge(kind, window, recipes) for window in windows]), flush=True)
        return
    if options.write:
        read_rows = list(map(json.loads, options.write.read_text().splitlines()))
        found = {row["type"]: row for row in read_rows if row["table"] != "models-reading"}
        order = [kind for kind, _ in kinds() if kind in found]
        speed = [row for row in read_rows if row["table"] == "models-reading"]
        path = Path(__file__).parent.parent / "docs" / "results" / "data" / "models.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in table([found[kind] for kind in order]) + speed))
        return
    if options.read:
        for kind in READ:
            for row in read(kind):
                print(json.dumps(row), flush=True)
                if options.out:
                    with options.out.open("a") as file:
                        file.write(json.dumps(row) + "\n")
        return
    for row in rows(options.types, quick=options.quick):
        error = f"{row['error']:.0e}" if "error" in row else ""
        print(f"{row['type']:<28}{row['verdict']:<10}{error:<8}{row['message'][:150]}", flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
