"""Damaged saved readings: refused by name whatever is wrong, and forged ones too wherever they do not fit."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from pathlib import Path

import pytest

from kvcli.cli import inputs
from kvcli.errors import DamagedError
from kvcli.prompt_cache import file_format
from kvcli.prompt_cache.prefill import PrefillResult, cached_prefill
from kvcli.prompt_cache.request import PrefillRequest
from kvcli.recipe import parse
from tests import tiny
from tests.e2e.fuzz.conftest import TIMES, clear, in_time
from tests.e2e.fuzz.mutate import mutants

MODEL = tiny.load("llama")
JOB = PrefillRequest(
    ids=tiny.document(48),
    recipe=parse("keydiff(budget=12, stabilizers=2, sinks=2)"),
    chunk=16,
    horizon=128,
    text="Call me Ishmael.",
    document={"files": ["a.txt"], "sha256": "0", "bytes": 16},
)


def read(place: Path, *, base: bool) -> PrefillResult:
    events = cached_prefill(MODEL, JOB, **({"base": place} if base else {"place": place}))  # type: ignore[arg-type]
    while True:
        try:
            next(events)
        except StopIteration as end:
            return end.value  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    place = tmp_path_factory.mktemp("saved") / "a.kv"
    read(place, base=False)
    return place.read_bytes()


def test_any_damage_is_refused(whole: bytes, tmp_path: Path) -> None:
    place = tmp_path / "a.kv"
    place.write_bytes(whole)
    assert read(place, base=True).cache == "hit"
    assert inputs.find([str(place)])[0] is not None
    for name, data in mutants(whole, 300 * TIMES, seed=5):
        place.write_bytes(data)
        with in_time(name), pytest.raises(DamagedError) as caught:
            read(place, base=True)
        clear(caught.value, "a.kv")


def test_a_forged_one_is_refused_or_fits(whole: bytes, tmp_path: Path) -> None:
    """The same damage under a digest that is right: what is used fits the model, and nothing else comes of it."""
    place, found = tmp_path / "a.kv", Counter[str]()
    header = int.from_bytes(whole[:8], "little")
    for part, count in ((whole[8 : 8 + header], 250), (whole, 150)):
        for name, data in mutants(part, count * TIMES, seed=6):
            place.write_bytes(_signed(whole, data if part is whole else _headed(data, whole[8 + header :])))
            with in_time(name):
                for use in (lambda: inputs.find([str(place)]), lambda: read(place, base=True)):
                    try:
                        use()
                        found["used"] += 1
                    except DamagedError as error:
                        clear(error, "a.kv")
                        found["refused"] += 1
    assert found["used"] > 20, "the forgeries reach what is behind the digest"
    assert found["refused"] > 100


def test_extreme_values_of_each_field_are_refused_or_change_nothing(whole: bytes, tmp_path: Path) -> None:
    place, size = tmp_path / "a.kv", int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8 : 8 + size])
    meta = json.loads(header["__metadata__"]["meta"])
    place.write_bytes(whole)
    right, found = read(place, base=True), Counter[str]()
    fields = [(meta, key) for key in meta] + [(meta["identity"], key) for key in meta["identity"]]
    for owner, key in fields:
        before = owner[key]
        for value in (-1, 0, 10**30, 1e308, "\ud800", "", None, [], {}, True, ["x"] * 3):
            owner[key] = value
            header["__metadata__"]["meta"] = json.dumps(meta)
            place.write_bytes(_signed(whole, _headed(json.dumps(header).encode(), whole[8 + size :])))
            try:
                saved, _ = inputs.find([str(place)])
                assert saved is not None
                (saved.header.meta.system or "").encode()
                assert read(place, base=True).context.kept == right.context.kept
                found["used"] += 1
            except DamagedError as error:
                clear(error, "a.kv")
                found["refused"] += 1
        owner[key] = before
    assert found["used"] > 10
    assert found["refused"] > 100


def _headed(header: bytes, data: bytes) -> bytes:
    return len(header).to_bytes(8, "little") + header + data


def _signed(whole: bytes, data: bytes) -> bytes:
    """``data`` with its own digest, where the digest's place is still there."""
    old = whole[whole.index(b'"sha256": "') + 11 :][:64]
    blank = data.replace(old, file_format._NO_DIGEST.encode(), 1)
    return data.replace(old, hashlib.sha256(blank).hexdigest().encode(), 1)
