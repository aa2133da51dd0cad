"""A saved prefill that is damaged, or of something else, is refused by name and never answered from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from kvcli.errors import DamagedError
from kvcli.events import Notice
from kvcli.prompt_cache import file_format
from kvcli.prompt_cache.directory import CacheDirectory
from kvcli.prompt_cache.request import PrefillRequest, request_key
from kvcli.recipe import parse
from tests import tiny
from tests.laws.test_prompt_cache import job, run, same

CHANGES: dict[str, Callable[[PrefillRequest], PrefillRequest]] = {
    "recipe": lambda j: replace(j, recipe=parse("keydiff(budget=25)")),
    "chunk": lambda j: replace(j, chunk=17),
    "template": lambda j: replace(j, head=[5, 6]),
    "text": lambda j: replace(j, ids=[3, *j.ids[1:]]),
}


@pytest.mark.parametrize("field", CHANGES)
def test_what_does_not_fit_is_refused_by_name(model, tmp_path: Path, field: str) -> None:
    book = tmp_path / "book.kv"
    work = job(ids=[4, *tiny.document(99)])
    run(model(), work, place=book)
    with pytest.raises(DamagedError, match=f"its {field} is"):
        run(model(), CHANGES[field](work), base=book)


def test_model_heads_question_and_version_are_refused_by_name(model, tmp_path: Path, monkeypatch) -> None:
    book = tmp_path / "book.kv"
    run(model(), job(), place=book)
    with pytest.raises(DamagedError, match="its model"):
        run(model("qwen3"), job(), base=book)
    run(model(), job(policy="snapkv"), place=book)
    with pytest.raises(DamagedError, match="its question"):
        run(model(), job(policy="snapkv", probe=tiny.document(5, seed=8)), base=book)
    run(model(), job(policy="locret"), place=book)
    with monkeypatch.context() as patch:
        patch.setattr(model(), "heads", tiny.load("llama", seed=1).heads)
        with pytest.raises(DamagedError, match="its heads"):
            run(model(), job(policy="locret"), base=book)
    monkeypatch.setattr(file_format, "FORMAT", 2)
    with pytest.raises(DamagedError, match="its version is 1"):
        run(model(), job(policy="locret"), base=book)


def test_every_byte_counts(model, tmp_path: Path) -> None:
    """A byte changed anywhere, or a cut anywhere: refused by name, read again by itself, never answered from."""
    library = CacheDirectory(tmp_path)
    work = job(40)
    place = library.path(request_key(model(), work))
    first, _ = run(model(), work, place=place, library=library)
    whole = place.read_bytes()
    generator = torch.Generator().manual_seed(0)
    places = {0, 7, 8, 20, len(whole) - 1, *torch.randint(len(whole), (60,), generator=generator).tolist()}
    for at in places:
        for bad in (whole[:at], whole[:at] + bytes([whole[at] ^ 0x11]) + whole[at + 1 :]):
            place.write_bytes(bad)
            with pytest.raises(DamagedError):
                run(model(), work, base=place)
    again, events = run(model(), work, place=place, library=library)
    assert again.cache == "miss"
    assert len([e for e in events if isinstance(e, Notice)]) == 1
    same(model(), first, again)
    assert run(model(), work, place=place, library=library)[0].cache == "hit", "it was replaced"


def test_a_well_made_file_with_wrong_tensors_is_refused(model, tmp_path: Path) -> None:
    """Right digest, wrong content: shapes, kinds and places are checked against the model."""
    book, bad = tmp_path / "book.kv", tmp_path / "bad.kv"
    work = job(40)
    run(model(), work, place=book)
    found = file_format.header(book)

    def forge(name: str, change: Callable[[file_format.LazyTensor], file_format.LazyTensor | None]) -> None:
        blobs = [
            file_format.LazyTensor(n, d, s, lambda n=n: found.read(n)) for n, (d, s, _, _) in found.tensors.items()
        ]  # type: ignore[misc]
        changed = [b if b.name != name else change(b) for b in blobs]
        file_format.write(bad, found.meta, [b for b in changed if b is not None])

    zeros = lambda b: replace(b, data=lambda: bytes(b.nbytes))  # noqa: E731
    forge("ids", lambda b: b)
    assert run(model(), work, base=bad)[0].cache == "hit"
    for name, change in (
        ("layer.1.k", lambda _: None),
        ("layer.1.pos", zeros),
        ("layer.1.pos", lambda b: replace(b, data=lambda: b"\x7f" * b.nbytes)),
        ("layer.1.k", lambda b: replace(b, shape=(b.shape[0], b.shape[2], b.shape[1]))),
        ("layer.1.scores", lambda b: replace(b, dtype="I32")),
        ("layer.0.v", lambda b: replace(b, dtype="I32")),
    ):
        forge(name, change)
        with pytest.raises(DamagedError):
            run(model(), work, base=bad)
    longer = job(ids=tiny.document(80))
    longer = replace(longer, ids=[*work.ids, *longer.ids])
    forge("ids", lambda b: b)
    assert run(model(), longer, base=bad)[0].cache == "resumed"
    forge("edge.0.gone", zeros)
    with pytest.raises(DamagedError):
        run(model(), longer, base=bad)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chunk", -1),
        ("chunk", 0),
        ("chunk", 10**30),
        ("horizon", -5),
        ("model", "\ud800"),
        ("text", "a\nb"),
        ("template", "\x1b[2J"),
    ],
)
def test_a_header_with_impossible_values_is_damaged(model, tmp_path: Path, field: str, value: object) -> None:  # type: ignore[no-untyped-def]
    work, library = job(), CacheDirectory(tmp_path)
    place = library.path(request_key(model(), work))
    run(model(), work, place=place, library=library)
    good = file_format.header(place)
    meta = replace(good.meta, identity=replace(good.meta.identity, **{field: value}))
    file_format.update_metadata(good, meta)
    with pytest.raises(DamagedError):
        file_format.header(place)


def test_a_digest_that_is_none_is_damaged(model, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    work, library = job(), CacheDirectory(tmp_path)
    place = library.path(request_key(model(), work))
    run(model(), work, place=place, library=library)
    digest = file_format.header(place).digest.encode()
    for wrong in (rb"\ud800" + b"0" * 58, b"0" * 63 + b"g", b"-" * 64):
        place.write_bytes(place.read_bytes().replace(digest, wrong))
        with pytest.raises(DamagedError, match="digest"):
            file_format.header(place)
        digest = wrong
