"""Selection of blocks by landmarks: first the normalizers of all rows, then votes; no logit is stored."""

import torch
import triton
import triton.language as tl
from torch import Tensor

_ROWS, _MARKS = 16, 32


@triton.jit
def _normalise(
    p_q, p_marks, p_lse, rows, marks, dim, scale,
    ROWS: tl.constexpr, MARKS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    i_head, i_rows = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    o_rows, o_dim = i_rows * ROWS + tl.arange(0, ROWS), tl.arange(0, DIM)
    m_rows, m_dim = o_rows < rows, o_dim < dim
    at_q = (i_head * rows + o_rows)[:, None] * dim + o_dim[None, :]
    # [ROWS, DIM]
    b_q = tl.load(p_q + at_q, mask=m_rows[:, None] & m_dim[None, :], other=0.0).to(tl.float32) * scale
    b_top = tl.full([ROWS], float("-inf"), tl.float32)
    b_sum = tl.zeros([ROWS], tl.float32)
    for start in range(0, marks, MARKS):
        o_marks = start + tl.arange(0, MARKS)
        m_marks = o_marks < marks
        at = (i_head * marks + o_marks)[:, None] * dim + o_dim[None, :]
        # [MARKS, DIM]
        b_marks = tl.load(p_marks + at, mask=m_marks[:, None] & m_dim[None, :], other=0.0).to(tl.float32)
        # [ROWS, MARKS]
        b_logits = tl.dot(b_q, tl.trans(b_marks), input_precision="ieee")
        b_logits = tl.where(m_marks[None, :], b_logits, float("-inf"))
        b_new = tl.maximum(b_top, tl.max(b_logits, 1))
        b_sum = b_sum * tl.exp(b_top - b_new) + tl.sum(tl.exp(b_logits - b_new[:, None]), 1)
        b_top = b_new
    tl.store(p_lse + i_head * rows + o_rows, b_top + tl.log(b_sum), mask=m_rows)


@triton.jit
def _vote(
    p_q, p_marks, p_lse, p_votes, group, m, marks, dim, scale,
    ROWS: tl.constexpr, MARKS: tl.constexpr, DIM: tl.constexpr,
):  # fmt: skip
    i_head, i_marks = tl.program_id(0).to(tl.int64), tl.program_id(1).to(tl.int64)
    o_marks, o_dim = i_marks * MARKS + tl.arange(0, MARKS), tl.arange(0, DIM)
    m_marks, m_dim = o_marks < marks, o_dim < dim
    at = (i_head * marks + o_marks)[:, None] * dim + o_dim[None, :]
    # [MARKS, DIM]
    b_marks = tl.load(p_marks + at, mask=m_marks[:, None] & m_dim[None, :], other=0.0).to(tl.float32)
    b_best = tl.zeros([MARKS], tl.float32)
    for i_group in range(group):
        b_votes = tl.zeros([MARKS], tl.float32)
        for start in range(0, m, ROWS):
            o_query = start + tl.arange(0, ROWS)
            m_query = o_query < m
            o_rows = (i_head * group + i_group) * m + o_query
            at_q = o_rows[:, None] * dim + o_dim[None, :]
            # [ROWS, DIM]
            b_q = tl.load(p_q + at_q, mask=m_query[:, None] & m_dim[None, :], other=0.0).to(tl.float32) * scale
            b_lse = tl.load(p_lse + o_rows, mask=m_query, other=float("inf"))
            # [ROWS, MARKS]
            b_logits = tl.dot(b_q, tl.trans(b_marks), input_precision="ieee")
            b_votes += tl.sum(tl.exp(b_logits - b_lse[:, None]), 0)
        b_best = tl.maximum(b_best, b_votes)
    tl.store(p_votes + i_head * marks + o_marks, b_best, mask=m_marks)


def select_blocks(q: Tensor, landmarks: Tensor, scale: float, count: int) -> Tensor:
    """See :func:`kvcli_kernels.landmarks.ref.select_blocks`; ties may resolve differently."""
    return votes(q, landmarks, scale).topk(count, dim=-1).indices.sort(dim=-1).values


def votes(q: Tensor, landmarks: Tensor, scale: float) -> Tensor:
    """Compute votes, float32 ``[H_kv, N]``; arguments as for :func:`select_blocks`."""
    heads, m, dim = q.shape
    kv_heads, marks, _ = landmarks.shape
    group = heads // kv_heads
    q, landmarks = q.contiguous(), landmarks.contiguous()
    lse = torch.empty(heads, m, dtype=torch.float32, device=q.device)
    found = torch.empty(kv_heads, marks, dtype=torch.float32, device=q.device)
    sizes = {"ROWS": _ROWS, "MARKS": _MARKS, "DIM": max(16, triton.next_power_of_2(dim))}
    rows = group * m
    _normalise[kv_heads, triton.cdiv(rows, _ROWS)](q, landmarks, lse, rows, marks, dim, scale, **sizes)
    _vote[kv_heads, triton.cdiv(marks, _MARKS)](q, landmarks, lse, found, group, m, marks, dim, scale, **sizes)
    return found
