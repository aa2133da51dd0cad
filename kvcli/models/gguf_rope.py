"""The scaling of a GGUF's rotary frequencies as transformers' ``rope_parameters``: its own converter drops them.

A GGUF says it in three ways. It has ``ARCH.rope.scaling.type`` (``linear`` or ``yarn``) with a factor, or the tensor
``rope_freqs`` by which each frequency is divided (Llama 3.1). Or it has two such tensors, for short and long texts
(Phi-3). Without the scaling, a model answers well up to its original window and wrongly after it.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from kvcli.errors import ModelError

_LOGARITHM = {"deepseek2": 10.0, "mistral4": 10.0, "mistral3": 1.0}
"""``mscale_all_dim`` in units of what a file says; ``mscale`` is the same in all published models."""

_EXACT = 1e-3
"""Relative error up to which found parameters are those that the factors were made with; files hold float32."""


def parameters(
    metadata: Mapping[str, Any],
    architecture: str,
    *,
    theta: float,
    window: int,
    factors: Sequence[float] | None = None,
    short: Sequence[float] | None = None,
    long: Sequence[float] | None = None,
) -> dict[str, Any]:
    """``rope_parameters`` of a config.

    Args:
        metadata: of the GGUF.
        architecture: the prefix of its keys.
        theta: base of the frequencies.
        window: positions that the file promises.
        factors: the tensor ``rope_freqs``, one divisor per frequency.
        short, long: the tensors ``rope_factors_short`` and ``rope_factors_long``.

    Raises:
        ModelError: a scaling that is not known, or without its numbers.
    """

    def number(key: str) -> float | None:
        value = metadata.get(f"{architecture}.rope.{key}")
        return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None

    kind = str(metadata.get(f"{architecture}.rope.scaling.type") or "linear")
    factor = number("scaling.factor") or number("scale_linear") or 1.0
    original = int(number("scaling.original_context_length") or 0)
    attention = number("scaling.attn_factor") or 1.0
    if not math.isfinite(factor) or factor <= 0 or not math.isfinite(attention) or attention <= 0:
        raise ModelError(f"its RoPE scaling has the factor {factor} and the attention factor {attention}")
    plain = {"rope_type": "default", "rope_theta": theta}
    if short is not None and long is not None:
        if not original:
            raise ModelError("its RoPE scaling is longrope, and the original context length is missing")
        stretch = window / original
        own = math.sqrt(1 + math.log(stretch) / math.log(original)) if stretch > 1 else 1.0
        return {
            **plain,
            "rope_type": "longrope",
            "short_factor": list(short),
            "long_factor": list(long),
            "factor": stretch,
            "original_max_position_embeddings": original,
            "attention_factor": attention if number("scaling.attn_factor") else own,
        }
    factor = 1.0 if kind == "none" else factor
    scaled = kind not in ("none", "linear") or factor != 1.0
    if factors is not None and any(f != 1.0 for f in factors):
        if scaled and kind != "llama3":
            raise ModelError(f"its RoPE is scaled twice: by the tensor rope_freqs and by {kind} {factor:g}")
        return {**plain, **_by_frequency(factors, theta, original, window)}
    if not scaled:
        return plain
    if kind == "linear":
        return {**plain, "rope_type": "linear", "factor": factor}
    if kind == "yarn":
        if not original:
            raise ModelError("its RoPE scaling is YaRN, and the original context length is missing")
        if (number("scaling.yarn_ext_factor") or 1.0) != 1.0:
            raise ModelError("its RoPE scaling is YaRN with an extrapolation factor, which transformers does not know")
        yarn = {**plain, "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": original}
        if multiplier := number("scaling.yarn_log_multiplier"):
            if architecture not in _LOGARITHM:
                raise ModelError("its RoPE scaling is YaRN with a multiplier of its logarithm, which is not known here")
            yarn |= dict.fromkeys(("mscale", "mscale_all_dim"), round(multiplier * _LOGARITHM[architecture], 6))
        for theirs, ours in (("yarn_beta_fast", "beta_fast"), ("yarn_beta_slow", "beta_slow")):
            if (value := number(f"scaling.{theirs}")) is not None:
                yarn[ours] = value
        if attention != 1.0:
            yarn["attention_factor"] = attention * (1.0 + 0.1 * math.log(max(1.0, factor)))
        return yarn
    raise ModelError(f"its RoPE scaling is {kind}, which is not known here")


def _by_frequency(factors: Sequence[float], theta: float, original: int, window: int) -> dict[str, Any]:
    """Llama 3's four numbers if they give these factors, else the factors themselves as ``longrope``."""
    candidates = []
    if (fitted := _fit(factors, theta)) is not None:
        candidates.append(fitted)
    lengths = [original] if original else [2**k for k in range(8, 21)]
    candidates += [(max(factors), 1.0, 4.0, float(length)) for length in lengths]
    for factor, low, high, length in candidates:
        made = llama3_factors(len(factors), theta, factor, low, high, length)
        if all(abs(a - b) <= _EXACT * b for a, b in zip(made, factors, strict=True)):
            return {
                "rope_type": "llama3",
                "factor": round(factor, 4),
                "low_freq_factor": low,
                "high_freq_factor": high,
                "original_max_position_embeddings": round(length),
            }
    if not all(math.isfinite(f) and f > 0 for f in factors):
        raise ModelError("its tensor rope_freqs has factors that are not positive numbers")
    return {
        "rope_type": "longrope",
        "short_factor": list(factors),
        "long_factor": list(factors),
        "factor": 1.0,
        "original_max_position_embeddings": original or window,
        "attention_factor": 1.0,
    }


def _fit(factors: Sequence[float], theta: float) -> tuple[float, float, float, float] | None:
    """Factor, low and high frequency factor and original length, from two frequencies between the two thresholds.

    There ``1 / f = (1 - s) / factor + s``, and ``s`` is linear in the frequency. Only the ratios of the other three
    numbers matter, so the low frequency factor is 1, as in every model that has been published.
    """
    most = max(factors)
    points = []
    for i, f in enumerate(factors):
        if 1.0 + _EXACT < f < most * (1 - _EXACT):
            turns = theta ** (-i / len(factors)) / (2 * math.pi)
            points.append((turns, (1 / f - 1 / most) / (1 - 1 / most)))
    if len(points) < 2:
        return None
    (x0, y0), (x1, y1) = points[0], points[-1]
    slope = (y1 - y0) / (x1 - x0)
    shift = y0 - slope * x0
    if slope <= 0 or shift >= 0:
        return None
    width = -1 / shift  # high - low
    return most, 1.0, round(1.0 + width, 3), float(round(slope * width))


def llama3_factors(count: int, theta: float, factor: float, low: float, high: float, original: float) -> list[float]:
    """What Llama 3.1 divides its ``count`` frequencies by (transformers, ``_compute_llama3_parameters``)."""
    found = []
    for i in range(count):
        turns = original * theta ** (-i / count) / (2 * math.pi)  # of this frequency over the original window
        if turns < low:
            found.append(factor)
        elif turns > high:
            found.append(1.0)
        else:
            smooth = (turns - low) / (high - low)
            found.append(1 / ((1 - smooth) / factor + smooth))
    return found
