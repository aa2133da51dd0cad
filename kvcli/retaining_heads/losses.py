"""Losses of retaining heads, and transformations of their labels."""

from __future__ import annotations

from math import log

import torch
import torch.nn.functional as F
from torch import Tensor

from kvcli.eviction import smoothing

LEVELS = (0.01, 0.03, 0.1, 0.3)
"""Shares of a text's units whose membership the ordinal loss predicts."""


def smooth_labels(label: Tensor, width: int) -> Tensor:
    """Compute the logarithm of the mean of ``exp(label)`` over each unit's neighbours, per KV head.

    Args:
        label: ``[H_kv, n]``, logarithms.
        width: of :func:`kvcli.eviction.smoothing.mean`.
    """
    if width == 1:
        return label
    top = label.amax(dim=1, keepdim=True)
    return smoothing.mean((label - top).exp(), width).clamp_min(1e-30).log() + top


def detrended(label: Tensor, head: int) -> Tensor:
    """Subtract a label's least-squares fit to a line and the log distance from the end, per KV head.

    Args:
        label: ``[H_kv, n]``.
        head: number of first units to exclude from the fit.
    """
    n = label.shape[1]
    place = torch.linspace(0, 1, n, device=label.device)
    near = torch.log(torch.arange(n, 0, -1, device=label.device).float()) / log(n + 1)
    basis = torch.stack([torch.ones_like(place), place, near], dim=1)
    if n - head < 8:
        return label
    basis = basis.double()  # LAPACK's last bits vary between calls in float32, and could move units across a level
    fit = torch.linalg.lstsq(basis[head:], label[:, head:].double().T).solution
    trend: Tensor = (basis @ fit).T
    return (label - trend).float()


def ordinal(score: Tensor, label: Tensor, levels: Tensor, head: int) -> Tensor:
    """Proportional odds: ``P(unit among the best p of its text) = sigmoid(score + level_p)`` for each of LEVELS.

    Each level is divided by the entropy of its rate, so that rare and common membership have equal weight.

    Args:
        score, label: ``[H_kv, n]``.
        levels: ``[H_kv, len(LEVELS)]``.
        head: number of first units to exclude when the best ``p`` are determined.
    """
    text = label[:, head:]
    total = score.new_zeros(())
    for j, p in enumerate(LEVELS):
        count = max(1, round(p * text.shape[1]))
        member = (label >= torch.topk(text, count, dim=1).values[:, -1:]).float()
        entropy = -(p * log(p) + (1 - p) * log(1 - p))
        total = total + F.binary_cross_entropy_with_logits(score + levels[:, j : j + 1], member) / entropy
    return total / len(LEVELS)


def regression(score: Tensor, label: Tensor, layers: int) -> Tensor:
    """Locret's loss of one layer: smooth L1 to the label, plus 0.0025 × smoothness (which is summed over layers)."""
    smooth = (score[:, 1:] - score[:, :-1]).square().mean()
    return F.smooth_l1_loss(score, label) + 0.0025 * layers * smooth


def overlap(score: Tensor, label: Tensor, share: float = 0.1) -> Tensor:
    """Compute the share of the true best tenth in the predicted best tenth, averaged over KV heads."""
    count = max(1, round(share * label.shape[1]))
    true, guess = torch.zeros_like(label), torch.zeros_like(label)
    true.scatter_(1, torch.topk(label, count, dim=1).indices, 1)
    guess.scatter_(1, torch.topk(score, count, dim=1).indices, 1)
    return (true * guess).sum() / true.sum()
