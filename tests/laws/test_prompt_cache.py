"""What goes to disk comes back bit for bit, and what does not fit is never taken for what does."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from kvcli.engine.generate import new_decode_cache
from kvcli.events import CacheHit, Checkpoint, Notice, Prefill
from kvcli.prompt_cache import file_format
from kvcli.prompt_cache.directory import CacheDirectory
from kvcli.prompt_cache.prefill import PrefillInterrupted, PrefillResult, cached_prefill
from kvcli.prompt_cache.request import PrefillRequest, request_key
from kvcli.recipe import parse
from tests import tiny
from tests.laws.helpers import WIDELY_TESTED, answer

POLICIES = ["full", *WIDELY_TESTED, "merging"]
FAMILIES = ["llama", "gemma3", "mistral-window", "phi3-longrope"]
CHUNK = 16
# Each family at some lengths and each length in some family: all pairs of the two say nothing new.
INTERRUPTED = [("llama", 1), ("gemma3", 40), ("mistral-window", 75), ("phi3-longrope", 90), ("llama", 90)]
SHORTER = [("llama", 33), ("gemma3", 57), ("mistral-window", 64), ("phi3-longrope", 100), ("llama", 64)]
PROBE = tiny.document(6, seed=3)


def recipe(policy: str, options: str = "stabilizers=8, sinks=2, tail=9") -> str:
    if policy == "merging":  # values of kept units change
        return f"keydiff(budget=24, victims=merge, pyramid=0.3, {options})"
    return policy if policy == "full" else f"{policy}(budget=24, {options})"


def job(length: int = 100, policy: str = "keydiff", **options: object) -> PrefillRequest:
    given = {"ids": tiny.document(length), "recipe": parse(recipe(policy)), "chunk": CHUNK, "horizon": 160}
    return PrefillRequest(**{**given, "probe": PROBE, "text": "text", "document": {"files": ["a"]}, **options})  # type: ignore[arg-type]


def run(model, work: PrefillRequest, **options: object) -> tuple[PrefillResult, list[object]]:
    events, seen = cached_prefill(model, work, **options), []  # type: ignore[arg-type]
    while True:
        try:
            seen.append(next(events))
        except StopIteration as end:
            return end.value, seen


def interrupted(model, work: PrefillRequest, after: int, **options: object) -> PrefillInterrupted:
    """Read until ``after`` tokens, then stop."""
    events, stop = cached_prefill(model, work, stop=lambda: stop, **options), False  # type: ignore[arg-type]
    try:
        for event in events:
            stop = isinstance(event, Prefill) and event.done >= after
    except PrefillInterrupted as paused:
        return paused
    raise AssertionError("it did not stop")


def same(model, one: PrefillResult, two: PrefillResult) -> None:
    """Equal contexts, and equal logits and answers from them."""
    for a, b in zip(one.context.layers, two.context.layers, strict=True):
        assert torch.equal(a.pos, b.pos)
        assert all(torch.equal(x, y) for x, y in zip(a.dense(), b.dense(), strict=True))
    assert one.context.starts == two.context.starts
    assert one.context.seen == two.context.seen
    said = [answer(model, new_decode_cache(model, r.context), PROBE) for r in (one, two)]
    assert said[0] == said[1]


@pytest.fixture
def library(tmp_path: Path) -> CacheDirectory:
    return CacheDirectory(tmp_path)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_second_reading_reads_nothing(model, library: CacheDirectory, family: str, policy: str) -> None:
    work = job(policy=policy)
    place = library.path(request_key(model(family), work))
    plain, _ = run(model(family), work)
    first, events = run(model(family), work, place=place, library=library)
    assert (plain.cache, first.cache) == ("off", "miss")
    assert not [e for e in events if isinstance(e, Notice | CacheHit)]
    again, events = run(model(family), work, place=place, library=library)
    assert (again.cache, again.reused, again.path) == ("hit", 100, place)
    assert [type(e) for e in events] == [CacheHit]
    same(model(family), plain, first)
    same(model(family), plain, again)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("family", "after"), INTERRUPTED)
def test_resumed_is_uninterrupted(model, library: CacheDirectory, family: str, policy: str, after: int) -> None:
    """Stopped in the body, at its edge, or in the protected tail."""
    work = job(policy=policy)
    place = library.path(request_key(model(family), work))
    paused = interrupted(model(family), work, after, place=place, library=library)
    assert 0 < paused.saved <= paused.done < 100
    assert file_format.header(place).meta.seen == paused.saved
    resumed, events = run(model(family), work, place=place, library=library)
    assert (resumed.cache, resumed.reused) == ("resumed", paused.saved)
    assert min(e.done for e in events if isinstance(e, Prefill)) > paused.saved
    same(model(family), run(model(family), work)[0], resumed)


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize(("family", "length"), SHORTER)
def test_a_longer_text_continues_a_shorter_one(
    model, library: CacheDirectory, family: str, policy: str, length: int
) -> None:
    """As if both had been read in one go, although the last chunk of the shorter one had no stabilizers."""
    ids = tiny.document(130)
    longer, shorter = job(policy=policy, ids=ids), job(policy=policy, ids=ids[:length])
    assert shorter.resume_point > 0
    run(model(family), shorter, place=library.path(request_key(model(family), shorter)), library=library)
    place = library.path(request_key(model(family), longer))
    continued, events = run(model(family), longer, place=place, library=library)
    assert (continued.cache, continued.reused) == ("resumed", shorter.resume_point)
    assert not [e for e in events if isinstance(e, Notice)]
    same(model(family), run(model(family), longer)[0], continued)
    assert file_format.header(place).meta.edge == longer.resume_point


def test_a_continued_text_can_be_continued(model, library: CacheDirectory) -> None:
    ids = tiny.document(130)
    for length in (50, 59, 90, 130):  # from 50 to 59 the edge stays where it was
        work = job(ids=ids[:length])
        reading, _ = run(model(), work, place=library.path(request_key(model(), work)), library=library)
        assert reading.cache == ("miss" if length == 50 else "resumed")
        assert file_format.header(reading.path).meta.edge == work.resume_point  # type: ignore[arg-type]
        same(model(), run(model(), work)[0], reading)


def test_another_text_is_not_continued(model, library: CacheDirectory) -> None:
    work = job(60)
    run(model(), work, place=library.path(request_key(model(), work)), library=library)
    ids = tiny.document(60)
    other = job(ids=[ids[0] % 90 + 3, *ids[1:], *ids])
    assert run(model(), other, place=library.path(request_key(model(), other)), library=library)[0].cache == "miss"


def test_one_portable_file(model, tmp_path: Path) -> None:
    """Written without a library; asked by its name; and the beginning of a longer text."""
    ids = tiny.document(130)
    work, book = job(ids=ids[:80]), tmp_path / "book.kv"
    written, _ = run(model(), work, place=book)
    used, _ = run(model(), work, base=book)
    assert used.cache == "hit"
    same(model(), written, used)
    longer = job(ids=ids)
    continued, _ = run(model(), longer, base=book)
    assert (continued.cache, continued.reused) == ("resumed", work.resume_point)
    same(model(), run(model(), longer)[0], continued)
    assert file_format.header(book).read("text") == b"text"


def test_frequencies_that_depend_on_the_length_are_part_of_the_name(model) -> None:
    one, two = job(), job(horizon=512)
    assert request_key(model(), one) == request_key(model(), two)
    assert request_key(model("phi3-longrope"), one) != request_key(model("phi3-longrope"), two)


def test_a_full_disk_stops_no_reading(model, library: CacheDirectory, monkeypatch) -> None:
    """One warning, no partial file, the same answer."""

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    work = job()
    place = library.path(request_key(model(), work))
    monkeypatch.setattr(os, "fsync", full)
    reading, events = run(model(), work, place=place, library=library)
    warnings = [e.text for e in events if isinstance(e, Notice)]
    assert len(warnings) == 1
    assert "No space left" in warnings[0]
    assert [p for p in library.folder.iterdir() if p.is_file()] == []
    same(model(), run(model(), work)[0], reading)


def test_files_are_private_and_nothing_is_left_over(model, library: CacheDirectory) -> None:
    work = job()
    before = os.umask(0)
    try:
        run(model(), work, place=library.path(request_key(model(), work)), library=library)
    finally:
        os.umask(before)
    (path,) = (p for p in library.folder.iterdir() if p.is_file())
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((library.folder / "locks").stat().st_mode) == 0o700
    for lock in (library.folder / "locks").iterdir():
        assert stat.S_IMODE(lock.stat().st_mode) == 0o600


def test_one_writer_at_a_time(model, library: CacheDirectory) -> None:
    work = job()
    place = library.path(request_key(model(), work))
    with library.lock(place) as mine:
        assert mine
        reading, events = run(model(), work, place=place, library=library)
    assert [e.text for e in events if isinstance(e, Notice)] == [
        "another kvcli process is saving the prefill of this text; this run saves nothing"
    ]
    assert not place.exists()
    assert run(model(), work, place=place, library=library)[0].cache == "miss"
    same(model(), reading, run(model(), work, place=place, library=library)[0])


def test_the_least_recently_used_go_first(model, library: CacheDirectory) -> None:
    """Up to the limit, readings for one question before readings for any; what is too large is not saved at all."""

    def save(number: int, policy: str = "keydiff") -> Path:
        work = job(ids=tiny.document(60, seed=number), policy=policy)
        place = library.path(request_key(model(), work))
        run(model(), work, place=place, library=library)
        os.utime(place, (number, number))
        return place

    one, two, bound = save(1), save(2), save(3, "snapkv")
    size = one.stat().st_size
    library.limit = 4 * size + size // 8  # a checkpoint that the finished reading replaces does not count beside it
    four = save(4)
    assert all(p.exists() for p in (one, two, bound, four))
    five = save(5)
    assert not bound.exists()
    library.touch(one)
    six = save(6)
    assert [p.exists() for p in (one, two, four, five, six)] == [True, False, True, True, True]
    library.limit = size // 2
    work = job(ids=tiny.document(60, seed=7))
    _, events = run(model(), work, place=library.path(request_key(model(), work)), library=library)
    assert len([e for e in events if isinstance(e, Notice)]) == 1
    assert one.exists(), "nothing is thrown away for what would not fit in any case"


def test_checkpoints_come_by_tokens_and_stay_bounded(model, library: CacheDirectory, monkeypatch) -> None:
    """A kill at any time loses no more than that many tokens; a checkpoint is as large as the budget, not the text."""
    monkeypatch.setattr("kvcli.prompt_cache.checkpoint.EVERY_TOKENS", 64)
    monkeypatch.setattr("kvcli.prompt_cache.checkpoint._SHARE", 0.0)
    work = job(400)
    place = library.path(request_key(model(), work))
    sizes, seen = set(), [0]
    for event in cached_prefill(model(), work, place=place, library=library):
        if isinstance(event, Prefill):
            assert event.done - seen[-1] <= 64
            continue
        assert isinstance(event, Checkpoint)
        header = file_format.header(place)
        assert header.meta.seen == event.tokens
        seen.append(event.tokens)
        sizes.add(sum(e - b for n, (_, _, b, e) in header.tensors.items() if n.startswith("layer.")))
    assert seen == [0, 64, 128, 192, 256, 320, 384]
    assert len(sizes) == 1


READER = """
import sys, time
from pathlib import Path
from kvcli.prompt_cache.directory import CacheDirectory
with CacheDirectory(Path(sys.argv[1])).lock(Path(sys.argv[2])) as mine:
    print(mine, flush=True)
    sys.stdin.readline()
    if len(sys.argv) > 3:
        Path(sys.argv[3]).rename(sys.argv[2])
"""


@contextmanager
def another_process(library: CacheDirectory, place: Path, *words: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that is the writer of a file until it gets a line or is killed."""
    command = [sys.executable, "-c", READER, *map(str, (library.folder, place, *words))]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "True\n"
            yield process
        finally:
            process.kill()


def test_the_second_process_waits_and_takes_what_the_first_has_read(model, library, tmp_path) -> None:  # type: ignore[no-untyped-def]
    work = job()
    place = library.path(request_key(model(), work))
    expected, _ = run(model(), work, place=place, library=library)
    place.rename(tmp_path / "read")
    with another_process(library, place, tmp_path / "read") as first:
        events = cached_prefill(model(), work, place=place, library=library)
        assert next(events) == Notice("another kvcli is reading this text; this one waits for it")
        assert first.stdin is not None
        first.stdin.write("\n")
        first.stdin.flush()
        hit = next(events)
        assert isinstance(hit, CacheHit)
        assert hit.tokens == len(work.ids)
        with pytest.raises(StopIteration) as end:
            next(events)
        same(model(), end.value.value, expected)
        assert first.wait(300) == 0


def test_the_death_of_the_first_process_ends_the_waiting(model, library) -> None:  # type: ignore[no-untyped-def]
    work = job()
    place = library.path(request_key(model(), work))
    with another_process(library, place) as first:
        events = cached_prefill(model(), work, place=place, library=library)
        assert isinstance(next(events), Notice)
        first.kill()
        assert isinstance(next(events), Prefill)
        events.close()


def test_waiting_can_be_stopped(model, library) -> None:  # type: ignore[no-untyped-def]
    work = job()
    place = library.path(request_key(model(), work))
    with another_process(library, place):
        events = cached_prefill(model(), work, place=place, library=library, stop=lambda: True)
        assert isinstance(next(events), Notice)
        with pytest.raises(PrefillInterrupted):
            next(events)
