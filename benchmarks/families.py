"""Every language model type of transformers, small and with wide random weights, against its own attention.

    python -m benchmarks.families --out all.jsonl         # all types, one row each: an hour on one core
    python -m benchmarks.families qwen3_5 gpt_oss         # some
    python -m benchmarks.families --quick --out all.jsonl # one width of window and one recipe: half an hour
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
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    PretrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from kvcli.models.auto_class import auto_class

COMMON = (
    ("qwen3_5", "Qwen 3.5, 3.6, 3.8"),
    ("qwen3_5_moe", "Qwen 3.5 and 3.6 MoE (35B-A3B, 122B-A10B)"),
    ("gemma4", "Gemma 4"),
    ("gpt_oss", "gpt-oss"),
    ("qwen3", "Qwen3"),
    ("qwen3_moe", "Qwen3 MoE, Qwen3-Coder"),
    ("qwen3_vl", "Qwen3-VL"),
    ("llama", "Llama 3.x, SmolLM2, most fine-tunes"),
    ("gemma3", "Gemma 3"),
    ("qwen2", "Qwen2.5, R1 distills"),
    ("mistral3", "Mistral Small 3.x, Devstral, Magistral"),
    ("ministral3", "Ministral 3"),
    ("mistral", "Mistral 7B, Nemo"),
    ("phi3", "Phi-4, Phi-4-mini"),
    ("qwen3_next", "Qwen3-Next, Qwen3-Coder-Next"),
    ("glm4_moe_lite", "GLM-4.7-Flash"),
    ("nemotron_h", "Nemotron 3 Nano"),
    ("lfm2", "LFM2, LFM2.5"),
    ("lfm2_moe", "LFM2 MoE"),
    ("granitemoehybrid", "Granite 4 H"),
    ("deepseek_v3", "DeepSeek V3, R1"),
    ("deepseek_v2", "DeepSeek V2-Lite, Coder-V2-Lite"),
    ("olmo3", "OLMo 3"),
    ("smollm3", "SmolLM3"),
    ("qwen2_5_vl", "Qwen2.5-VL"),
    ("gemma3n_text", "Gemma 3n"),
    ("laguna", "Laguna XS"),
    ("glm4_moe", "GLM-4.5-Air"),
)
"""Types that people ran locally in 2026, most downloaded first, and the models of each."""

TOKENS, CHUNK, PART, WINDOWS = 400, 57, 5, (24, 100)
RECIPES = ("full", "keydiff(budget=64)", "h2o(budget=64)+int8", "full+infinigen")
TOLERANCE = 1e-4

_MARK = "verdict: "
_VOCAB, _STD = 256, 0.15
_SIZES: dict[str, int] = {
    **dict.fromkeys(("hidden_size", "d_model", "n_embd", "dim", "embed_dim", "out_hidden_size", "lm_hidden_size"), 64),
    **dict.fromkeys(("intermediate_size", "ffn_dim", "d_ff", "n_inner", "mlp_dim", "decoder_ffn_dim"), 96),
    **dict.fromkeys(("encoder_ffn_dim", "dense_intermediate_size", "intermediate_size_mlp"), 96),
    **dict.fromkeys(("moe_intermediate_size", "shared_expert_intermediate_size", "shared_intermediate_size"), 48),
    **dict.fromkeys(("moe_shared_expert_intermediate_size", "expert_ffn_hidden_size", "ffn_hidden_size"), 48),
    **dict.fromkeys(("num_hidden_layers", "n_layer", "num_layers", "n_layers", "decoder_layers"), 4),
    **dict.fromkeys(("encoder_layers", "depth"), 2),
    **dict.fromkeys(("num_attention_heads", "n_head", "num_heads", "n_heads", "decoder_attention_heads"), 4),
    **dict.fromkeys(("encoder_attention_heads", "num_query_heads"), 4),
    **dict.fromkeys(("num_key_value_heads", "num_kv_heads", "n_kv_heads", "num_global_key_value_heads"), 2),
    **dict.fromkeys(("head_dim", "attention_head_dim", "kv_channels", "v_head_dim", "qk_nope_head_dim"), 16),
    **dict.fromkeys(("qk_rope_head_dim",), 8),
    **dict.fromkeys(("global_head_dim", "q_lora_rank", "kv_lora_rank"), 32),
    **dict.fromkeys(("vocab_size", "vocab_size_per_layer_input", "text_vocab_size"), _VOCAB),
    **dict.fromkeys(("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts"), 4),
    **dict.fromkeys(("num_experts_per_tok", "moe_k", "moe_topk", "top_k_experts", "experts_per_token"), 2),
    **dict.fromkeys(("n_shared_experts", "num_shared_experts", "n_group", "topk_group"), 1),
    **dict.fromkeys(("first_k_dense_replace", "num_dense_layers"), 1),
    **dict.fromkeys(("linear_num_key_heads",), 2),
    **dict.fromkeys(("linear_num_value_heads",), 4),
    **dict.fromkeys(("linear_key_head_dim", "linear_value_head_dim", "linear_head_dim"), 16),
    **dict.fromkeys(("mamba_n_heads", "mamba_num_heads"), 8),
    **dict.fromkeys(("mamba_d_head", "mamba_head_dim", "mamba_d_state", "ssm_state_size", "mamba_state_dim"), 16),
    **dict.fromkeys(("mamba_d_ssm",), 128),
    **dict.fromkeys(("mamba_n_groups", "n_groups"), 2),
    **dict.fromkeys(("hidden_size_per_layer_input", "laurel_rank"), 8),
    **dict.fromkeys(("image_size",), 32),
    **dict.fromkeys(("patch_size",), 8),
}
_SPECIAL = re.compile(r"(_token_id|_token_index|_token_ids|_id)$")


def small_config(kind: str, window: int = 24, **changes: Any) -> PretrainedConfig:
    """The configuration of a model type with four layers of 64 numbers, and windows of ``window`` tokens."""
    cls = CONFIG_MAPPING[kind]
    return cls(**_shrunk(cls().to_dict(), window, kind) | _OWN.get(kind, {}) | changes)  # type: ignore[no-any-return]


def _shrunk(values: dict[str, Any], window: int, kind: str) -> dict[str, Any]:
    made: dict[str, Any] = {}
    layers = 2 if "vision" in kind or "audio" in kind else 4
    for name, value in values.items():
        if isinstance(value, dict) and "model_type" in value:
            text = not any(word in name for word in ("vision", "audio", "image", "vq", "code"))
            inner = value["model_type"] if text else f"vision {value['model_type']}"
            made[name] = {"model_type": value["model_type"], **_shrunk(value, window, inner)}
            made[name] |= _OWN.get(value["model_type"], {})
        elif name in ("rope_parameters", "rope_scaling") and isinstance(value, dict):
            made[name] = _rope(value)
        elif name in ("layer_types", "mlp_layer_types", "layers_block_type") and isinstance(value, list):
            made[name] = _pattern(value, 4)
        elif "window" in name and isinstance(value, int) and not isinstance(value, bool):
            made[name] = window
        elif isinstance(value, bool) or value is None:
            continue
        elif name == "num_hidden_layers" and layers == 2:
            made[name] = 2
        elif name in _SIZES and isinstance(value, int):
            made[name] = _SIZES[name]
        elif name == "max_position_embeddings":
            made[name] = 1024
        elif name == "intermediate_size" and isinstance(value, list):
            made[name] = [96] * 4
        elif _SPECIAL.search(name) and isinstance(value, int) and value >= _VOCAB - 1:
            made[name] = _VOCAB - 2 - len(made) % 40
        elif _SPECIAL.search(name) and isinstance(value, list):
            made[name] = [_VOCAB - 1]
    return made


def _pattern(values: list[Any], count: int) -> list[Any]:
    """``count`` layers with every kind of the list, in its order."""
    kinds = list(dict.fromkeys(values))
    found = values[:count]
    if missing := [k for k in kinds if k not in found]:
        found[-len(missing) :] = missing
    return found


def _rope(value: dict[str, Any]) -> dict[str, Any]:
    made = {k: _rope(v) if isinstance(v, dict) else v for k, v in value.items()}
    if "mrope_section" in made:
        made["mrope_section"] = [4, 2, 2]
    return made


_LINEAR = ["linear_attention", "full_attention", "linear_attention", "full_attention"]
_CONVOLUTION = ["conv", "full_attention", "conv", "full_attention"]
_TURNED = {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 0.5, "mrope_section": [2, 1, 1]}
_LATENT = {"num_key_value_heads": 4, "num_experts_per_tok": 2}
_MAMBA = {"mamba_n_groups": 2, "mamba_n_heads": 8, "mamba_d_head": 16, "mamba_d_state": 16, "mamba_chunk_size": 32}
_PROPORTIONAL = {
    "sliding_attention": {"rope_type": "default", "rope_theta": 1e4},
    "full_attention": {"rope_type": "proportional", "rope_theta": 1e6, "partial_rotary_factor": 0.25},
}
_MIXED = ["sliding_attention", "full_attention", "sliding_attention", "full_attention"]
_OWN: dict[str, dict[str, Any]] = {
    "qwen3_5_text": {"layer_types": _LINEAR, "rope_parameters": _TURNED},
    "qwen3_5_moe_text": {"layer_types": _LINEAR, "rope_parameters": _TURNED},
    "qwen3_next": {"layer_types": _LINEAR},
    "lfm2": {"layer_types": _CONVOLUTION},
    "lfm2_moe": {"layer_types": _CONVOLUTION},
    "granitemoehybrid": {"layer_types": _LINEAR, **_MAMBA},
    "falcon_h1": {"mamba_d_ssm": 128, **_MAMBA},
    "nemotron_h": {"layer_types": _LINEAR, "chunk_size": 32},
    "gemma4_text": {
        "layer_types": _MIXED, "global_head_dim": 32, "num_global_key_value_heads": 1, "head_dim": 16,
        "rope_parameters": _PROPORTIONAL, "attention_k_eq_v": True,
    },
    "gemma3n_text": {
        "layer_types": _MIXED, "num_kv_shared_layers": 1, "intermediate_size": 96, "activation_sparsity_pattern": None,
    },
    "deepseek_v2": {**_LATENT, "head_dim": 8},
    "deepseek_v3": {**_LATENT, "head_dim": 8, "n_group": 1, "topk_group": 1},
    "glm4_moe_lite": _LATENT,
    "qwen2_5_vl_text": {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [4, 2, 2]}},
    "smollm3": {"no_rope_layers": [1, 0, 1, 1]},
    "mistral": {"sliding_window": 24},
}  # fmt: skip


def build(kind: str, window: int = 24, *, seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A small float32 model of a type, with wide random weights."""
    config = small_config(kind, window, **changes)
    torch.manual_seed(seed)
    module = auto_class(config).from_config(config, dtype=torch.float32, trust_remote_code=False)
    return widen(module, seed)


def widen(module: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """Draw all matrices anew and disturb everything else: norms, biases, sinks, decays."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in module.parameters():
            noise = torch.randn(parameter.shape, generator=generator) * _STD
            parameter.copy_(noise if parameter.dim() > 1 else parameter.nan_to_num() + noise)
    return module.eval()


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
    known = [kind for kind, _ in COMMON]
    for kind in [*known, *sorted((causal | images) - set(known))]:
        yield kind, kind in causal


def _maps(mapping: Any, kind: str) -> bool:
    return kind in mapping._model_mapping


def rows(wanted: list[str], *, quick: bool = False) -> Iterator[dict[str, Any]]:
    """One row per type, judged in processes of their own: one that ends early fails its type, and the next goes on."""
    from benchmarks.provenance import provenance

    names, causal = dict(COMMON), dict(kinds())
    left = [kind for kind in causal if not wanted or kind in wanted]
    while left:
        for kind, found in _apart(left, quick):
            left.remove(kind)
            worst = next((one for one in found if one["verdict"] != "pass"), found[0])
            errors = [one["error"] for one in found if "error" in one]
            yield {
                "table": "models-common" if kind in names else "models-others",
                "type": kind,
                "models": names.get(kind, ""),
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
        found = {(row := json.loads(line))["type"]: row for line in options.write.read_text().splitlines()}
        order = [kind for kind, _ in kinds() if kind in found]
        path = Path(__file__).parent.parent / "docs" / "results" / "data" / "models.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in table([found[kind] for kind in order])))
        return
    for row in rows(options.types, quick=options.quick):
        error = f"{row['error']:.0e}" if "error" in row else ""
        print(f"{row['type']:<28}{row['verdict']:<10}{error:<8}{row['message'][:150]}", flush=True)
        if options.out:
            with options.out.open("a") as file:
                file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
