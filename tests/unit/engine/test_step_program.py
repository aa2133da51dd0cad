"""Small operations in a compiled loop give what torch gives, bit for bit, or are left to torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from kvcli.engine.step_program import compiled, instruction

pytest.importorskip("kvcli_kernels.small_operations", reason="numba is not installed")

aten = torch.ops.aten
SHAPES = [((5,), (5,)), ((1, 9, 1, 64), (1, 1, 1, 64)), ((2, 3, 7), (3, 1)), ((1, 1, 2000), (2000,)), ((4, 6), ())]
BINARY = [aten.add.Tensor, aten.sub.Tensor, aten.mul.Tensor]
UNARY: list[tuple[Any, tuple[Any, ...]]] = [(aten.neg.default, ()), (aten.clone.default, ())]
DTYPES = [torch.float32, torch.bfloat16]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed + sum(shape))).to(dtype)


def same(func: Any, args: Any, kwargs: Any = None) -> bool | None:
    """Whether the loop gives torch's result; ``None`` if it leaves the operation to torch."""
    want = func(*args, **(kwargs or {}))
    out = torch.full_like(want, 7.0)
    made = instruction(func, args, kwargs or {}, [out])
    if made is None:
        return None
    compiled([made])()
    return torch.equal(out.nan_to_num(9.0), want.nan_to_num(9.0))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shapes", SHAPES)
@pytest.mark.parametrize("func", BINARY)
def test_two_operands_of_any_shapes(func: Any, shapes: tuple[tuple[int, ...], ...], dtype: torch.dtype) -> None:
    one, two = (draw(*shape, dtype=dtype, seed=i) for i, shape in enumerate(shapes))
    assert same(func, (one, two)) is True
    assert same(func, (two, one)) is True
    assert same(func, (one, 0.5)) is True
    assert same(func, (one, 0.1)) is (True if dtype == torch.float32 else None)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("func", "rest"), [*UNARY, (aten.pow.Tensor_Scalar, (2,))])
def test_one_operand(func: Any, rest: tuple[Any, ...], dtype: torch.dtype) -> None:
    for shape in ((3,), (2, 1, 576), (1, 4, 1, 30)):
        assert same(func, (draw(*shape, dtype=dtype), *rest)) is True
    assert same(aten.rsqrt.default, (draw(1, 40).abs(),)) is True


def test_views_with_gaps_and_turned_ones() -> None:
    x = draw(6, 8, 10)
    for view in (x[:, ::2], x.transpose(0, 2), x[..., 3:7], x.flip(0)):
        assert same(aten.mul.Tensor, (view, view)) is True
        assert same(aten.neg.default, (view.to(torch.bfloat16),)) is True


@pytest.mark.parametrize(("source", "target"), [(a, b) for a in DTYPES for b in DTYPES])
def test_copies_round_as_torch_does(source: torch.dtype, target: torch.dtype) -> None:
    x = torch.tensor([0.0, -0.0, 1.00390625, 1.01171875, 3.4e38, -1e-40, float("inf"), float("-inf"), float("nan")])
    assert same(aten._to_copy.default, (x.to(source),), {"dtype": target}) is True


def test_joined_tensors() -> None:
    parts = [draw(1, 3, n, 4, seed=n) for n in (1, 2, 5)]
    assert same(aten.cat.default, (parts, 2)) is True
    assert same(aten.cat.default, (parts, -2)) is True
    assert same(aten.cat.default, ([draw(4), draw(3)],)) is True


def test_a_row_is_written_where_the_index_says_at_the_time_of_the_call() -> None:
    cache, row, index = draw(3, 50, 8), draw(3, 1, 8, seed=1), torch.tensor([0])
    made = instruction(aten.index_copy_.default, (cache, 1, index, row), {}, [cache])
    assert made is not None
    call, want = compiled([made]), cache.clone()
    for place in (7, 49, 7):
        index.fill_(place)
        row += 1
        call()
        want[:, place] = row[:, 0]
        assert torch.equal(cache, want)


def test_results_of_one_are_operands_of_the_next() -> None:
    x, y, z = draw(1, 64), torch.empty(1, 64), torch.empty(1, 64)
    steps = [
        instruction(aten.mul.Tensor, (x, x), {}, [y]),
        instruction(aten.add.Tensor, (y, 1e-5), {}, [z]),
        instruction(aten.div_.Tensor, (z, torch.tensor(64.0)), {}, [z]),
    ]
    call = compiled([step for step in steps if step is not None])
    for _ in range(3):
        x += 1
        call()
        assert torch.equal(z, (x * x + 1e-5) / 64.0)


LEFT: dict[str, Callable[[], Any]] = {
    "whole numbers": lambda: same(aten.add.Tensor, (torch.arange(4), torch.arange(4))),
    "half precision": lambda: same(aten.neg.default, (draw(4).half(),)),
    "five dimensions": lambda: same(aten.neg.default, (draw(1, 2, 1, 2, 1),)),
    "a factor of the second operand": lambda: same(aten.add.Tensor, (draw(4), draw(4)), {"alpha": 2}),
    "large ones": lambda: same(aten.neg.default, (draw(1 << 17),)),
    "another power": lambda: same(aten.pow.Tensor_Scalar, (draw(4), 3)),
    "a tensor without dimensions of another type": lambda: same(
        aten.mul.Tensor, (draw(4).bfloat16(), torch.tensor(0.1))
    ),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_is_left_to_torch(kind: str) -> None:
    assert LEFT[kind]() is None


def test_memory_that_overlaps_is_left_to_torch() -> None:
    x = draw(20)
    assert instruction(aten.neg.default, (x[:10],), {}, [x[5:15]]) is None
    assert instruction(aten.neg.default, (x,), {}, [x]) is not None
