"""Multi-head latent attention (DeepSeek, GLM-4.7-Flash) without unpacking: a token is kept as its latent and one key.

Such a layer makes the keys and values of all heads from a latent by one matrix, and gives all keys the same rotated
part. Here the matrix goes to the other side. A query is multiplied with the keys' part of it and then attends to the
latent itself. The average of the latents is multiplied with the values' part. The cache sees one KV head, whose key is
the latent and the rotated part, and whose value is the same tensor. That a layer works so is found by trial.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from kvcli.models import rope
from kvcli.models.trial import START, Call, Trial

LATENT = "kvcli_latent"
"""The attribute of an attention layer that has its :class:`Latent`."""


@dataclass
class Latent:
    """A layer's matrix between latents and heads.

    Attributes:
        matrix: the linear layer from a latent to the keys' and values' numbers of all heads.
        heads, plain, width: heads, a key's numbers from the latent, and a value's.
        seen: the latent ``[m, rank]`` that the layer was about to unpack.
    """

    matrix: nn.Linear
    heads: int
    plain: int
    width: int
    seen: Tensor | None = None

    @property
    def rank(self) -> int:
        """Numbers of a latent."""
        return self.matrix.in_features

    def by_head(self) -> Tensor:
        """The matrix as ``[heads, plain + width, rank]``."""
        return self.matrix.weight.view(self.heads, self.plain + self.width, self.rank)

    def absorb(self, q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        """Return queries ``[1, H, m, D]`` and the keys ``[1, 1, m, D]`` that they attend to, ``D = rank + rotated``."""
        assert self.seen is not None
        latent, self.seen = self.seen, None
        turned = q[..., : self.plain] @ self.by_head()[:, : self.plain]
        keys = torch.cat([latent[None, None], k[:, :1, :, self.plain :]], dim=-1)
        return torch.cat([turned, q[..., self.plain :]], dim=-1), keys

    def values(self, out: Tensor) -> Tensor:
        """Return the outputs ``[H, m, width]`` of averages ``[H, m, D]`` of keys, unless they are unpacked already."""
        if out.shape[-1] == self.width:
            return out
        return out[..., : self.rank] @ self.by_head()[:, self.plain :].transpose(1, 2)

    def note(self, x: Tensor) -> Tensor:
        """Stand in for the matrix: remember the latent, and return zeros that take no memory."""
        self.seen = x.reshape(-1, self.rank)
        return x.new_zeros(1).expand(*x.shape[:-1], self.matrix.out_features)


def find(rotary: rope.ModelRotary, rotated: Sequence[Call], again: Callable[[], Trial]) -> list[Latent]:
    """Find the latents of all attention layers; empty unless all have one.

    Args:
        rotary: the model's RoPE, for the layers of ``rotated``.
        rotated: the calls of a trial with RoPE in.
        again: runs the trial with RoPE out.
    """
    given: dict[nn.Linear, Tensor] = {}
    wide = {c.module: c.k.shape[0] * c.v.shape[2] for c in rotated if c.k.shape[0] == c.v.shape[0]}
    candidates = [
        part
        for module, least in wide.items()
        for part in module.modules()
        if isinstance(part, nn.Linear) and part.out_features > least and _plain(part)
    ]
    if len(wide) < len(rotated) or not candidates:
        return []
    with ExitStack() as stack:
        for part in candidates:
            hook: Any = lambda m, args: given.__setitem__(m, args[0])  # noqa: E731
            stack.callback(part.register_forward_pre_hook(hook).remove)
        plain = again().calls
    found: list[Latent] = []
    for index, (call, turned) in enumerate(zip(plain, rotated, strict=True)):
        parts = (part for part in call.module.modules() if isinstance(part, nn.Linear) and part in given)
        made = next((m for part in parts if (m := _latent(part, given[part], call)) is not None), None)
        if made is None:
            return []
        made.note(given[made.matrix])
        _, keys = made.absorb(call.q[None], call.k[None])
        at = range(START, START + keys.shape[2])
        expected = torch.cat([keys[0, ..., : made.rank], turned.k[:1, :, made.plain :]], dim=-1)
        if not rope.alike(expected, rotary.rotate(index, keys[0], at)):
            return []
        found.append(made)
    return found if len({made.rank - made.plain for made in found}) == 1 else []


def _plain(part: nn.Linear) -> bool:
    """Whether a layer is a matrix that is here as it is: neither quantized nor in main memory beside a GPU."""
    here = part.weight.is_floating_point() and part.weight.device.type != "meta" and part.weight.dim() == 2
    return here and part.weight.itemsize > 1 and getattr(part, "bias", None) is None


def _latent(part: nn.Linear, x: Tensor, call: Call) -> Latent | None:
    """The latent of a call, if this layer makes its keys and values."""
    heads, tokens, width = call.v.shape
    plain = part.out_features // heads - width
    fits = part.out_features % heads == 0 and 0 < plain < call.k.shape[2] and x.numel() == tokens * part.in_features
    if not fits or not width < part.in_features + call.k.shape[2] - plain < heads * call.k.shape[2]:
        return None
    k, v = part(x).view(tokens, heads, -1).transpose(0, 1).split([plain, width], dim=-1)
    shared = call.k[:1, :, plain:].expand(heads, -1, -1)
    same = ((call.k[..., :plain], k), (call.v, v), (call.k[..., plain:], shared))
    return Latent(part, heads, plain, width) if all(rope.alike(a, b) for a, b in same) else None


def install(calls: Sequence[Call], latents: Sequence[Latent]) -> Callable[[bool], None]:
    """Give layers their latents, and return a switch: ``switch(True)`` keeps latents, ``switch(False)`` unpacks."""
    before = [made.matrix.__dict__.get("forward") for made in latents]

    def switch(ours: bool) -> None:
        for call, made, forward in zip(calls if latents else (), latents, before, strict=True):
            vars(made.matrix).pop("forward", None)
            if ours:
                vars(made.matrix)["forward"] = made.note
            elif forward is not None:
                vars(made.matrix)["forward"] = forward
            setattr(call.module, LATENT, made if ours else None)

    return switch
