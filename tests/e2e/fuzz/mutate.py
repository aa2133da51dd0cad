"""What happens to files: bits flip, pieces go missing, come twice, change places, or turn into something else."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterator

Mutation = Callable[[random.Random, bytearray], None]

_NUMBERS = re.compile(rb"\d+")
_EXTREME = (b"0", b"-1", b"1", b"255", b"65536", b"2147483648", b"99999999999999999999", b"1e999", b"NaN")
_PIECES = (
    b"\0",
    b"\xff" * 9,
    b"<",
    b">>",
    b"endstream",
    b"<![CDATA[",
    b"&#x0;",
    b"\xed\xa0\x80",
    b"\x02[page 9]",
    b'"',
)


def _stretch(r: random.Random, data: bytearray, longest: int = 200) -> tuple[int, int]:
    """A place and an end of at most ``longest`` bytes."""
    at = r.randrange(len(data) + 1)
    return at, min(len(data), at + r.randint(1, longest))


def bit(r: random.Random, data: bytearray) -> None:
    data[r.randrange(len(data))] ^= 1 << r.randrange(8)


def byte(r: random.Random, data: bytearray) -> None:
    for _ in range(r.randint(1, 8)):
        data[r.randrange(len(data))] = r.randrange(256)


def cut(r: random.Random, data: bytearray) -> None:
    del data[r.randrange(len(data)) :]


def beheaded(r: random.Random, data: bytearray) -> None:
    del data[: r.randint(1, 64)]


def gap(r: random.Random, data: bytearray) -> None:
    at, end = _stretch(r, data)
    del data[at:end]


def zeros(r: random.Random, data: bytearray) -> None:
    at, end = _stretch(r, data, 600)
    data[at:end] = bytes(end - at)


def noise(r: random.Random, data: bytearray) -> None:
    at, end = _stretch(r, data)
    data[at:end] = r.randbytes(end - at)


def twice(r: random.Random, data: bytearray) -> None:
    at, end = _stretch(r, data)
    data[at:at] = data[at:end]


def swapped(r: random.Random, data: bytearray) -> None:
    (a, b), (c, d) = sorted((_stretch(r, data), _stretch(r, data)))
    if b <= c:
        data[a:d] = data[c:d] + data[b:c] + data[a:b]


def inserted(r: random.Random, data: bytearray) -> None:
    at = r.randrange(len(data) + 1)
    data[at:at] = r.choice(_PIECES)


def number(r: random.Random, data: bytearray) -> None:
    """A number that is written out becomes an extreme one."""
    found = list(_NUMBERS.finditer(data))
    if found:
        start, end = r.choice(found).span()
        data[start:end] = r.choice(_EXTREME)


MUTATIONS: tuple[Mutation, ...] = (
    bit, byte, cut, beheaded, gap, zeros, noise, twice, swapped, inserted, number,
)  # fmt: skip


def mutants(whole: bytes, count: int, seed: int) -> Iterator[tuple[str, bytes]]:
    """``count`` files, each with its name, that are not ``whole``; the same ones for the same seed."""
    r = random.Random(seed)
    for attempt in range(100 * count):  # some change nothing, say a number where there is none
        data, mutation = bytearray(whole), MUTATIONS[attempt % len(MUTATIONS)]
        for _ in range(r.choice((1, 1, 1, 2, 5))):
            if data:
                mutation(r, data)
        if data != whole:
            yield f"{mutation.__name__}-{seed}-{attempt}", bytes(data)
            count -= 1
        if not count:
            return
    raise AssertionError("too few of the mutations changed anything")
