"""A few tokens through a model whose attention is watched: which modules attend, with what, and what rotates.

Nothing of this is read from class names: a module attends if it calls transformers' attention interface.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel

from kvcli.errors import UnsupportedModel
from kvcli.models.auto_class import attend_by
from kvcli_kernels.attention import CappedScale

NAME = "kvcli-trial"
TOKENS, START = 12, 3


@dataclass
class Call:
    """One call of the attention interface.

    Attributes:
        name, module: the attention layer.
        q, k, v: ``[H, m, D]`` as they reach the attention, rotated if the layer rotates.
        window: the layer's sliding window.
        scale: factor on the layer's logits, and their cap.
        source: index of an earlier call whose keys these are, if layers share them.
        hidden: ``[1, m, hidden]``, the layer's input; ``None`` if it has none of that name.
    """

    name: str
    module: nn.Module
    q: Tensor
    k: Tensor
    v: Tensor
    window: int | None
    scale: float
    source: int | None = None
    hidden: Tensor | None = None


@dataclass
class Trial:
    """Records of a run: calls in order, and the rotary modules that computed angles, by name."""

    calls: list[Call] = field(default_factory=list)
    rotaries: dict[str, nn.Module] = field(default_factory=dict)


_running: list[tuple[Trial, dict[nn.Module, str]]] = []


def _observe(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _attention_mask: Tensor | None = None,
    scaling: float | None = None,  # the names are transformers'
    sliding_window: int | None = None,
    softcap: float | None = None,
    **_flags: Any,
) -> tuple[Tensor, None]:
    """Record and return zeros, so that no layer's input depends on what rotates before it."""
    trial, names = _running[-1]
    scale = logit_scale(query, scaling, softcap)
    made = Call(names.get(module, "?"), module, query[0], key[0], value[0], sliding_window, scale)
    made.source = next((i for i, c in enumerate(trial.calls) if _same(c.k, made.k) and _same(c.v, made.v)), None)
    trial.calls.append(made)
    return query.new_zeros(1, query.shape[2], query.shape[1], value.shape[-1]), None


def logit_scale(query: Tensor, scaling: float | None, softcap: float | None) -> float:
    """The factor on an attention layer's logits, and their cap, of what the layer passes."""
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return CappedScale(scale, softcap) if softcap else scale


def _same(a: Tensor, b: Tensor) -> bool:
    return a.data_ptr() == b.data_ptr() and a.shape == b.shape


@torch.inference_mode()
def run(module: PreTrainedModel, *, hidden: Sequence[nn.Module] = (), state: Any = None, start: int = START) -> Trial:
    """Run :data:`TOKENS` random ids at the positions from ``start`` on.

    Args:
        module: the model, with RoPE in or out.
        hidden: attention layers whose input is recorded too.
        state: an empty recurrent state, for models that have such layers; it is advanced.
    """
    AttentionInterface.register(NAME, _observe)
    inputs: dict[nn.Module, Tensor] = {}
    trial = Trial()
    with ExitStack() as stack:
        stack.enter_context(_watched(module, trial, stack))
        for part in hidden:
            hook = part.register_forward_pre_hook(lambda m, a, k: _note_input(inputs, m, a, k), with_kwargs=True)
            stack.callback(hook.remove)
        device = next(p.device for p in module.parameters() if p.device.type != "meta")
        at = torch.arange(start, start + TOKENS, device=device)[None]
        module.base_model(input_ids=ids(module).to(device), position_ids=at, use_cache=False, past_key_values=state)
    for call in trial.calls:
        call.hidden = inputs.get(call.module)
    return trial


def ids(module: PreTrainedModel, count: int = TOKENS) -> Tensor:
    """Random ids ``[1, count]`` without those that a configuration gives a meaning, as images have."""
    config = module.config
    special: set[int] = set()
    for part in (config, config.get_text_config()):
        for name, value in vars(part).items():
            if name.endswith(("_token_id", "_token_index")):
                special.update(value if isinstance(value, list | tuple) else [value] if isinstance(value, int) else [])
    rows = int(module.get_input_embeddings().weight.shape[0])
    usual = torch.tensor([i for i in range(min(rows, 1 << 15)) if i not in special])
    return usual[torch.randint(len(usual), (1, count), generator=torch.Generator().manual_seed(0))]


@contextmanager
def _watched(module: PreTrainedModel, trial: Trial, stack: ExitStack) -> Iterator[None]:
    names = {part: name for name, part in module.named_modules()}
    for part, name in names.items():
        if _asks_positions(part):
            hook = part.register_forward_pre_hook(lambda m, _args, name=name: _note(trial.rotaries, name, m))
            stack.callback(hook.remove)
    before = module.config._attn_implementation
    attend_by(module, NAME)
    _running.append((trial, names))
    try:
        yield
    finally:
        _running.pop()
        attend_by(module, before)


def _asks_positions(part: nn.Module) -> bool:
    """Whether a module computes something of positions alone, as rotary modules do: it has no weights."""
    if next(part.parameters(), None) is not None:
        return False
    try:
        named = inspect.signature(part.forward).parameters
    except (TypeError, ValueError):
        return False
    return "position_ids" in named and len(named) < 5


def _note(found: dict[str, nn.Module], name: str, module: nn.Module) -> None:
    found[name] = module


def _note_input(inputs: dict[nn.Module, Tensor], module: nn.Module, args: tuple[Any, ...], kwargs: Any) -> None:
    found = args[0] if args else kwargs.get("hidden_states")
    if isinstance(found, Tensor):
        inputs[module] = found


def one_call_a_layer(module: PreTrainedModel, calls: Sequence[Call]) -> None:
    """Refuse models whose layers attend not at all, or more than once.

    Raises:
        UnsupportedModel: names the layer.
    """
    name = type(module).__name__
    if not calls:
        raise UnsupportedModel(f"{name}: no layer attends through transformers' attention interface")
    seen: set[nn.Module] = set()
    for call in calls:
        if call.module in seen:
            raise UnsupportedModel(f"{name}: {call.name} ({type(call.module).__name__}) attends more than once a token")
        seen.add(call.module)
