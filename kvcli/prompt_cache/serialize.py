"""A prefill cache as tensors of a file and back, bit for bit.

A complete file also holds its *resume point*: the prefill cache before the last chunk, from which a longer text
continues. (Stabilizers do not apply to the last chunk.) It is stored as a difference: the units that the last
chunk evicted, and the previous scores of those that stayed. If a policy changes kept units (``changes_units``), all
units of the resume point are stored. Its tensors are named ``edge``.

    layer.I.k, .v      [H_kv, c, D]   units at the end, keys before RoPE; uint8 rows if prefill quantized them; no .v if
                                      the model has latents
    layer.I.scores     [H_kv, c]      float32
    layer.I.pos        [H_kv, c]      int32
    layer.I.state.S    …              running statistics of the policy
    edge.I.scores, .pos, .state.S     the same at the resume point
    edge.I.gone        [H_kv, c']     uint8, 1 where a unit of it is no unit of the end
    edge.I.k, .v       [N, D]         those units, head by head
    state.S, edge.state.S             states of recurrent layers, if the model has such layers
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from kvcli.cache.prefill_cache import PrefillCache, PrefillCacheLayer
from kvcli.prompt_cache.file_format import CacheHeader, LazyTensor, damaged

_NAMES = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.float16: "F16",
    torch.bfloat16: "BF16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.int16: "I16",
    torch.int8: "I8",
    torch.uint8: "U8",
    torch.bool: "BOOL",
}


class Tensors:
    """The tensors of a file, one at a time, on the CPU. Raises ``DamagedError`` for one that is missing."""

    def __init__(self, header: CacheHeader, handle: Any) -> None:
        self.header, self._handle = header, handle

    def get(self, name: str) -> Tensor:
        try:
            found: Tensor = self._handle.get_tensor(name)
        except (SafetensorError, ValueError) as error:
            raise damaged(self.header.path, str(error)[:120]) from None
        return found

    def states(self, prefix: str) -> dict[str, Tensor]:
        """Running statistics by name."""
        return {n.removeprefix(prefix): self.get(n) for n in self.header.tensors if n.startswith(prefix)}


@contextmanager
def opened(header: CacheHeader) -> Iterator[Tensors]:
    """The tensors of a file."""
    try:
        with safe_open(header.path, framework="pt", device="cpu") as handle:
            yield Tensors(header, handle)
    except SafetensorError as error:
        raise damaged(header.path, str(error)[:120]) from None


def blobs(cache: PrefillCache, before: Tensors | None = None) -> list[LazyTensor]:
    """The tensors of a prefill cache, and with a checkpoint of the same prefill its resume point.

    Args:
        cache: the prefill cache, at a chunk boundary or at its end.
        before: the checkpoint before the last chunk; it must stay open until the blobs are written.
    """
    made: list[LazyTensor] = []
    for layer in cache.layers:
        at, c = f"layer.{layer.index}.", layer.count
        made += [
            _blob(f"{at}k", layer.k[:, :c]),
            *([] if layer.v is layer.k else [_blob(f"{at}v", layer.v[:, :c])]),
            _blob(f"{at}scores", layer.scores[:, :c]),
            _blob(f"{at}pos", layer.pos[:, :c]),
            *(_blob(f"{at}state.{name}", tensor) for name, tensor in layer.state.items()),
        ]
        if before is not None:
            made += _resume_point(layer, before)
    if cache.state is not None:
        made += [_blob(f"state.{name}", tensor) for name, tensor in cache.state.tensors().items()]
        if before is not None:
            made += [_blob(f"edge.state.{name}", tensor) for name, tensor in before.states("state.").items()]
    return made


def _resume_point(layer: PrefillCacheLayer, before: Tensors) -> list[LazyTensor]:
    old, new = f"layer.{layer.index}.", f"edge.{layer.index}."
    pos = before.get(f"{old}pos")
    last = layer.pos[:, : layer.count].cpu()
    gone, stayed = ~_among(pos, last), _among(last, pos)
    sides = {"k": layer.k} if layer.v is layer.k else {"k": layer.k, "v": layer.v}
    for name, units in sides.items():
        if not torch.equal(before.get(f"{old}{name}")[~gone], units[:, : layer.count].cpu()[stayed]):
            gone.fill_(True)
            break
    count, dim = int(gone.sum()), layer.k.shape[2]

    def victims(name: str) -> LazyTensor:
        take: Callable[[], Tensor] = lambda: before.get(f"{old}{name}")[gone]  # noqa: E731  # a layer at a time
        return LazyTensor(f"{new}{name}", _NAMES[layer.k.dtype], (count, dim), lambda: _bytes(take()))

    return [
        *map(victims, sides),
        _blob(f"{new}scores", before.get(f"{old}scores")),
        _blob(f"{new}pos", pos),
        _blob(f"{new}gone", gone.to(torch.uint8)),
        *(_blob(f"{new}state.{name}", tensor) for name, tensor in before.states(f"{old}state.").items()),
    ]


def restore(cache: PrefillCache, file: Tensors, where: Literal["end", "resume point"]) -> None:
    """Put units back into an empty prefill cache of the same model and recipe.

    Raises:
        DamagedError: shapes, dtypes or positions that no such cache has.
    """
    meta = file.header.meta
    whole = where == "end" or meta.edge == meta.seen
    seen = meta.seen if whole else meta.edge
    for layer in cache.layers:
        units = _end(layer, file) if whole else _at_edge(layer, file)
        k, v, scores, pos, state = units
        _check(layer, file, k, v, scores, pos, seen)
        c = layer.count = pos.shape[1]
        for buffer, tensor in ((layer.k, k), (layer.v, v), (layer.scores, scores), (layer.pos, pos)):
            buffer[:, :c] = tensor
        layer.state = {name: tensor.to(layer.device) for name, tensor in state.items()}
    _restore_state(cache, file, "state." if whole else "edge.state.")
    cache.seen = seen


def _restore_state(cache: PrefillCache, file: Tensors, prefix: str) -> None:
    found = file.states(prefix)
    if cache.state is None:
        return
    if not found:
        raise damaged(file.header.path, "it has no state of the model's recurrent layers")
    try:
        cache.state.restore({name: tensor.to(cache.layers[0].device) for name, tensor in found.items()})
    except ValueError as error:
        raise damaged(file.header.path, str(error)) from None


_Units = tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Tensor]]


def _end(layer: PrefillCacheLayer, file: Tensors) -> _Units:
    at = f"layer.{layer.index}."
    k, scores, pos = (file.get(at + name) for name in ("k", "scores", "pos"))
    v = k if layer.v is layer.k else file.get(f"{at}v")
    return k, v, scores, pos, file.states(f"{at}state.")


def _at_edge(layer: PrefillCacheLayer, file: Tensors) -> _Units:
    at = f"edge.{layer.index}."
    k, v, _, last, _ = _end(layer, file)
    gone_k, scores, pos = (file.get(at + name) for name in ("k", "scores", "pos"))
    gone_v = gone_k if layer.v is layer.k else file.get(f"{at}v")
    gone = file.get(f"{at}gone").bool()
    stayed = _among(last, pos) if last.dim() == pos.dim() == 2 else last.bool()
    if bool(gone.all()):
        stayed.zero_()
    if (
        gone.shape != pos.shape
        or stayed.shape != k.shape[:2]
        or not torch.equal((~gone).sum(1), stayed.sum(1))
        or int(gone.sum()) != len(gone_k)
    ):
        raise damaged(file.header.path, f"the resume point of layer {layer.index} does not fit its end")
    units = []
    for there, then in ((k, gone_k), (v, gone_v)):
        both = there.new_empty(*pos.shape, there.shape[2])
        both[gone], both[~gone] = then, there[stayed]
        units.append(both)
    return units[0], units[1], scores, pos, file.states(f"{at}state.")


def _among(pos: Tensor, others: Tensor) -> Tensor:
    """Which places ``pos [H, a]`` stand among ``others [H, b]`` of the same head: bool ``[H, a]``. Both ascend."""
    if not others.shape[1]:
        return torch.zeros_like(pos, dtype=torch.bool)
    index = torch.searchsorted(others.contiguous(), pos.contiguous()).clamp_(max=others.shape[1] - 1)
    return others.gather(1, index) == pos


def _check(
    layer: PrefillCacheLayer, file: Tensors, k: Tensor, v: Tensor, scores: Tensor, pos: Tensor, seen: int
) -> None:
    heads, capacity, dim = layer.k.shape
    c = pos.shape[-1] if pos.dim() == 2 else -1
    fits = (
        0 <= c <= capacity
        and (pos.dtype, scores.dtype, k.dtype, v.dtype) == (torch.int32, torch.float32, layer.k.dtype, layer.k.dtype)
        and pos.shape == scores.shape == (heads, c)
        and k.shape == v.shape == (heads, c, dim)
    )
    if not fits:
        raise damaged(
            file.header.path,
            f"layer {layer.index} has keys {list(k.shape)} {k.dtype} and places {list(pos.shape)},"
            f" and this model keeps at most {[heads, capacity, dim]} {layer.k.dtype}",
        )
    if c and not (bool((pos.diff(dim=1) > 0).all()) and int(pos.min()) >= 0 and int(pos.max()) < seen):
        raise damaged(file.header.path, f"places of layer {layer.index} are out of order")


def _blob(name: str, tensor: Tensor) -> LazyTensor:
    return LazyTensor(name, _NAMES[tensor.dtype], tuple(tensor.shape), lambda: _bytes(tensor))


def _bytes(tensor: Tensor) -> memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else memoryview(b"")
