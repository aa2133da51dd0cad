"""Threads that share the products of a step: the same numbers, whoever takes which part."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
import torch

from kvcli_kernels import team
from tests.unit.kernels.rounding import rounded

loop = pytest.importorskip("kvcli_kernels.team_loop", reason="numba is not installed")
packed = pytest.importorskip("kvcli_kernels.linear.packed", reason="numba is not installed")


def draw(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed + sum(shape)))


@pytest.fixture(autouse=True)
def threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Three threads, and products small enough for a test in many parts."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    monkeypatch.setattr(team, "_LEAST", 1)
    monkeypatch.setattr(team, "_PART", 256)
    monkeypatch.setattr(team, "_rest", 0)
    yield
    assert team._active.get() is None


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(
    ("rows", "wide", "high"), [(1, 32, 8), (1, 64, 136), (1, 576, 1536), (5, 96, 200), (11, 1536, 64)]
)
def test_shared_products_are_those_of_one_thread_bit_for_bit(
    dtype: torch.dtype, rows: int, wide: int, high: int
) -> None:
    weight = packed.pack(draw(high, wide, seed=1))
    x = draw(rows, wide).to(dtype)
    with torch.inference_mode():
        alone = packed.linear(x, weight)
        with team.together():
            shared = [packed.linear(x, weight) for _ in range(20)]
        exact = (rounded(x) @ weight.dequantize().T).to(dtype)
    assert all(torch.equal(one, alone) for one in shared)
    assert float((alone.float() - exact.float()).norm() / exact.float().norm()) < 0.005


def test_parts_are_really_taken_by_others() -> None:
    weight = packed.pack(draw(1536, 576))
    x, end = draw(1, 576), time.monotonic() + 300
    while time.monotonic() < end:
        with team.together():
            for _ in range(50):
                packed.linear(x, weight)
            active = team._active.get()
            if active is not None and loop.taken(active[1]):
                return
        team._rest = 0
    pytest.fail("no other thread took a part within 300 s")


def test_numbers_that_are_not_finite_stay_so() -> None:
    weight = packed.pack(draw(64, 32))
    for value in (float("nan"), float("inf"), 3e38):
        x = torch.full((1, 32), value).bfloat16()
        with torch.inference_mode(), team.together():
            out = packed.linear(x, weight)
        assert out.isnan().any() if value != value else not out.isfinite().all()


def test_after_an_error_nobody_waits_any_longer() -> None:
    with pytest.raises(RuntimeError, match="in the step"), team.together():
        raise RuntimeError("in the step")
    assert not team._lock.locked()
    assert team._pool(2).submit(lambda: 7).result(300) == 7


def test_two_answers_at_once_do_not_disturb_each_other() -> None:
    weights = [packed.pack(draw(256, 96, seed=seed)) for seed in (1, 2)]
    inputs = [draw(1, 96, seed=seed) for seed in (3, 4)]
    want = [packed.linear(x, weight) for x, weight in zip(inputs, weights, strict=True)]
    wrong = []

    def work(i: int) -> None:
        for _ in range(30):
            with torch.inference_mode(), team.together():
                found = [packed.linear(inputs[i], weights[i]) for _ in range(5)]
            if not all(torch.equal(one, want[i]) for one in found):
                wrong.append(i)

    both = [threading.Thread(target=work, args=(i,)) for i in range(2)]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(300)
        assert not thread.is_alive()
    assert not wrong
