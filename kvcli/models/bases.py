"""The subspaces of a layer's keys and values, from the weights that compute them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from kvcli.errors import ModelError
from kvcli.models import attention
from kvcli.models.cpu_linear import CpuDecodeLinear
from kvcli.models.model import Model
from kvcli.storage.base import Basis
from kvcli.types import ModelSpec

_ROWS = 256  # inputs of a projection at a time; as few as in decoding could be taken for a decode step


def basis_of(model: Model) -> Callable[[int], Basis]:
    """Return a function that computes a layer's :func:`basis`. Raises as :func:`layer_parts`."""
    layer_parts(model.module, model.spec)
    return partial(basis, model.module, model.spec)


def layer_parts(module: nn.Module, spec: ModelSpec) -> list[nn.Module]:
    """Return the attention layers whose key and value projections are known, in order.

    Raises:
        ModelError: a layer without a sliding window has other projections; names its class.
    """
    found = {getattr(part, attention.LAYER): part for part in module.modules() if hasattr(part, attention.LAYER)}
    parts = [found[i] for i in range(spec.layers)]
    for i, part in enumerate(parts):
        if spec.sliding[i] is None and _projections(part, spec.of_layer(i)) is None:
            raise ModelError(
                f"{spec.name}: {type(part).__name__} has no weights of keys and values that kvcli knows",
                "another storage: kvcli recipes",
            )
    return parts


def basis(module: nn.Module, spec: ModelSpec, layer: int) -> Basis:
    """Compute the left singular vectors of each KV head's rows of ``W_K`` and ``W_V``, largest singular value first.

    They are the eigenvectors of ``W_h W_hᵀ``, in float64. A norm of the keys multiplies each token's key by a number,
    which changes no subspace. It also multiplies by fixed factors per channel, which count as part of ``W_K``.

    Raises:
        ModelError: as for :func:`layer_parts`.
    """
    part: Any = layer_parts(module, spec)[layer]
    own = spec.of_layer(layer)
    projections = _projections(part, own)
    assert projections is not None
    sides = []
    for (projection, first, last), norm in zip(projections, (getattr(part, "k_norm", None), None), strict=True):
        weight, bias = _matrix(projection, first, last, own)
        if norm is not None:
            weight, bias = weight * _factors(norm, own, weight), torch.zeros_like(bias)
        sides += [torch.linalg.eigh(weight @ weight.transpose(1, 2)).eigenvectors.flip(2).float(), bias.float()]
    return Basis(*sides)


_Rows = tuple[Any, int, int]


def _projections(part: Any, own: ModelSpec) -> tuple[_Rows, _Rows] | None:
    """Return the modules of keys and values with their rows; ``None`` if they are unknown."""
    if isinstance(getattr(part, "k_proj", None), nn.Module) and isinstance(getattr(part, "v_proj", None), nn.Module):
        k, v = part.k_proj.out_features, part.v_proj.out_features
        fits = k == own.kv_heads * own.head_dim and v % own.kv_heads == 0 and v <= k
        return ((part.k_proj, 0, k), (part.v_proj, 0, v)) if fits else None
    fused = getattr(part, "qkv_proj", None)
    q, k = own.heads * own.head_dim, own.kv_heads * own.head_dim
    if isinstance(fused, nn.Module) and getattr(fused, "out_features", 0) == q + 2 * k:
        return (fused, q, q + k), (fused, q + k, q + 2 * k)
    return None


def _matrix(projection: Any, first: int, last: int, own: ModelSpec) -> tuple[Tensor, Tensor]:
    """Return some rows of a projection as float64 ``[H_kv, D, hidden]``, and their bias ``[H_kv, D]``.

    Of classes other than torch's, as quantised ones, the products with unit vectors are taken.
    """
    bias = getattr(projection, "bias", None)
    if type(projection) in (nn.Linear, CpuDecodeLinear) and not projection.weight.is_meta:
        weight = projection.weight[first:last].double()
    else:
        parameters = [p for p in projection.parameters() if p.is_floating_point()]
        dtype = parameters[0].dtype if parameters else torch.float32
        inputs = torch.split(torch.eye(projection.in_features, dtype=dtype, device=own.device), _ROWS)
        rows = torch.cat([projection(x)[:, first:last].double() for x in inputs])
        at_zero = projection(torch.zeros_like(inputs[0]))[:1, first:last].double()
        bias, weight = at_zero[0], (rows - at_zero).T
    vector = weight.new_zeros(last - first) if bias is None else bias.double().to(weight.device)
    vector = vector if len(vector) == last - first else vector[first:last]
    weight, vector = weight.view(own.kv_heads, -1, weight.shape[1]), vector.view(own.kv_heads, -1)
    missing = own.head_dim - weight.shape[1]  # narrower values reach the cache with zeros
    return pad(weight, (0, 0, 0, missing)), pad(vector, (0, missing))


def _factors(norm: Any, own: ModelSpec, weight: Tensor) -> Tensor:
    """Return what a norm multiplies each channel with, ``[H_kv or 1, D, 1]``, up to a common factor."""
    parameters = list(norm.parameters())
    width = parameters[0].numel() if parameters else own.head_dim
    signs = 1.0 - 2.0 * (torch.arange(width, device=weight.device) % 2)  # no mean, so that a layer norm keeps them
    found: Tensor = norm(signs.to(parameters[0].dtype if parameters else torch.float32)).double() * signs
    return found.view(-1, own.head_dim, 1)
