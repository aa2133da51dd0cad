"""A linear layer, in float32."""

from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute ``x @ weight.T + bias``.

    Args:
        x: ``[…, K]``.
        weight: ``[N, K]``.
        bias: ``[N]``.

    Returns:
        ``[…, N]`` in the dtype of ``x``.
    """
    out = x.float() @ weight.float().T
    return (out if bias is None else out + bias.float()).to(x.dtype)
