"""``kvcli kv``: where the kept units lie, as letters, JSON and a picture."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.e2e import golden
from tests.e2e.conftest import Call, Validate

TEXT = "Queequeg was a native of Kokovoko, an island far away to the West and South.\n" * 60
RECIPE = "keydiff(budget=300, stabilizers=16)"


@pytest.fixture
def book(folder: Path) -> Path:
    (folder / "book.txt").write_text(TEXT)
    return folder / "book.txt"


def test_every_kept_unit_is_on_the_map_once(call: Call, tiny_model: Path, book: Path, validate: Validate) -> None:
    made = call("kv", "--json", "-m", tiny_model, "--policy", RECIPE, book)
    assert made.code == 0, made.err
    validate(made.json)
    found = made.json["map"]
    edges, tokens = found["edges"], found["tokens"]
    assert (edges[0], edges[-1], len(edges)) == (0, tokens, 241)
    for row in found["layers"]:
        kept = sum(share * (b - a) for share, a, b in zip(row, edges, edges[1:], strict=False))
        assert kept == pytest.approx(300, abs=0.1)
    pages = found["pages"]
    assert [p["token_end"] for p in pages[:-1]] == [p["token_start"] for p in pages[1:]]
    assert pages[-1]["token_end"] == tokens
    on_pages = sum(p["share"] * (p["token_end"] - p["token_start"]) for p in pages)
    head = pages[0]["token_start"] / tokens  # the template's words in front of the text are kept or not, too
    assert 300 * (1 - 2 * head) - 1 < on_pages <= 300.1


def test_streaming_keeps_both_ends(call: Call, tiny_model: Path, book: Path) -> None:
    made = call("kv", "-m", tiny_model, "--policy", "streaming(budget=300, sinks=150, stabilizers=150)", book)
    assert made.code == 0, made.err
    whole, *layers = [row[6:].ljust(60) for row in made.out.splitlines()[:3]]
    for row in (whole, *layers):
        assert row[0] in "█"
        assert row[-1] in "█"
        assert set(row[10:50]) == {" "}
    assert made.out.splitlines()[3] == "layer start" + " " * 52 + "end"
    assert made.out.splitlines()[5].split() == ["most", "kept", "kept", "tokens"]
    best = [row.split("  ")[0] for row in made.out.splitlines()[6:]]
    assert {best[0], best[1]} == {"lines 1–20", "lines 41–60"}


def test_it_reads_what_ask_reads(call: Call, tiny_model: Path, book: Path) -> None:
    """And leaves ask's choice of a recipe as it was."""
    assert "heads    none" in call("kv", "-m", tiny_model, book).err
    asked = call("ask", "-m", tiny_model, "-n", "3", book, "-e", "Who?", "-e", "Where?")
    assert "cached " in asked.err
    assert "snapkv" in call("ask", "-m", tiny_model, "-n", "3", book, "Who?").err


def test_a_policy_that_reads_for_one_question(call: Call, tiny_model: Path, book: Path) -> None:
    without = call("kv", "-m", tiny_model, "--policy", "snapkv", book)
    assert (without.code, without.out) == (3, "")
    assert '-e "QUESTION"' in without.err
    assert call("kv", "-m", tiny_model, "--policy", "snapkv", "-e", "Who?", book).code == 0


def test_a_picture(call: Call, tiny_model: Path, book: Path, folder: Path) -> None:
    pytest.importorskip("matplotlib")
    for name, begins in (("out.png", b"\x89PNG"), ("out.svg", b"<?xml")):
        made = call("kv", "-m", tiny_model, "--policy", RECIPE, "--plot", name, book)
        assert made.code == 0, made.err
        assert f"plot     {name}" in made.err
        assert (folder / name).read_bytes().startswith(begins)


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (["--plot", "out.jpeg", "book.txt"], 2),
        (["--plot", "nowhere/out.png", "book.txt"], 2),
        (["missing.txt"], 3),
        ([], 3),
        (["--plto", "x.png"], 2),
    ],
)
def test_bad_input(call: Call, tiny_model: Path, book: Path, args: list[str], code: int) -> None:
    assert book.is_file()
    made = call("kv", "-m", tiny_model, *args)
    assert (made.code, made.out) == (code, "")
    golden.check(f"error: kvcli kv {' '.join(args)}", made.err)


def test_without_matplotlib(call: Call, book: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from kvcli.cli.views import plot

    monkeypatch.setattr(plot, "find_spec", lambda _name: None)
    made = call("kv", "--plot", "out.png", book)
    assert made.code == 2
    assert "pip install 'kvcli[plot]'" in made.err
