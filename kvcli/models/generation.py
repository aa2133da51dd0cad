"""The sampling settings that a model's authors recommend, from its generation configuration."""

from __future__ import annotations

from typing import Any

from kvcli.models.model import Model

_TOP_K = 50  # transformers' defaults for a configuration that samples without naming them


def settings(model: Model) -> dict[str, Any]:
    """Arguments of :class:`kvcli.engine.sampling.Sampling`; empty, hence greedy, for a model that is not to be sampled
    from.

    What Sampling does not know (a repetition penalty) is left out.
    """
    found = getattr(model.module, "generation_config", None)
    if found is None or not found.do_sample:
        return {}
    temperature = 1.0 if found.temperature is None else float(found.temperature)
    if temperature == 0:
        return {}
    k = _TOP_K if found.top_k is None else int(found.top_k)
    given: dict[str, Any] = {"temperature": temperature, "top_k": k or None}
    for name in ("top_p", "min_p"):
        value = getattr(found, name, None)
        if value is not None and 0 < value < 1:
            given[name] = float(value)
    return {name: value for name, value in given.items() if value is not None}
