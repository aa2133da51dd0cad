"""``kvcli extract`` shows what a model would read, and ``ask`` reads the same."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Call, Validate
from tests.unit.documents.makers import Page, lines, pdf

HARBOUR = ["The old man sat by the harbour and mended", "his nets until the light was gone."]


@pytest.fixture
def book(folder: Path) -> Path:
    pages = [Page(lines(HARBOUR)), Page(), Page(lines(["And then he walked home."]))]
    (folder / "book.pdf").write_bytes(pdf(pages, outline=[("Harbour", 1), ("Home", 3)]))
    return folder / "book.pdf"


@pytest.mark.usefixtures("book")
def test_the_text_on_stdout_and_the_report_on_stderr(call: Call) -> None:
    outcome = call("extract", "book.pdf")
    assert outcome.code == 0
    assert outcome.out == f"[page 1]\n{' '.join(HARBOUR)}\n\n[page 2]\n\n\n[page 3]\nAnd then he walked home.\n"
    assert "book.pdf · 3 pages, 1 without text · 100 characters" in outcome.err
    assert "empty    book.pdf: page 2" in outcome.err
    assert call("extract", "-q", "book.pdf", "--pages", "3").out == "[page 3]\nAnd then he walked home.\n"


@pytest.mark.usefixtures("book")
def test_a_table_of_pages(call: Call) -> None:
    head, *rows = call("extract", "-q", "--report", "book.pdf").out.splitlines()
    assert head.split() == ["page", "label", "characters", "words", "odd", "section"]
    assert [r.split()[0] for r in rows] == ["1", "2", "3"]
    assert rows[2].endswith("Home")


@pytest.mark.usefixtures("book")
def test_as_json(call: Call, validate: Validate) -> None:
    found = call("extract", "--json", "book.pdf").json
    validate(found)
    text, spans = found["document"]["text"], found["document"]["spans"]
    assert "".join(text[s["start"] : s["end"]] for s in spans) == text
    assert [s["section"] for s in spans] == ["Harbour", "Harbour", "Home"]
    assert found["quality"]["without_text"] == [{"file": "book.pdf", "page": 2}]


def test_odd_glyphs_are_counted(call: Call, folder: Path) -> None:
    (folder / "a.txt").write_text("private \ue000\ue000 and lost \ufffd")
    outcome = call("extract", "a.txt")
    assert "3 glyphs (14.3 %): U+E000 ×2, U+FFFD replacement character ×1" in outcome.err
    assert "may not be text" in outcome.err


def test_a_scan(call: Call, folder: Path, validate: Validate) -> None:
    (folder / "scan.pdf").write_bytes(pdf([Page(picture=True)] * 2))
    outcome = call("extract", "--json", "scan.pdf")
    assert outcome.code == 3
    assert outcome.json["error"]["message"] == "scan.pdf: pages 1–2 are images without text"
    validate(outcome.json)


@pytest.mark.usefixtures("book")
def test_ask_reads_pages(call: Call, tiny_model: Path, validate: Validate) -> None:
    outcome = call("ask", "-m", tiny_model, "-n", "4", "--json", "--pages", "1,3", "book.pdf", "Who?")
    assert outcome.code == 0, outcome.err
    validate(outcome.json)
    assert outcome.json["document"]["pages"] == 2
    assert outcome.json["document"]["without_text"] == []
    empty = call("ask", "-m", tiny_model, "-n", "4", "--json", "--pages", "2-3", "book.pdf", "Who?").json
    assert empty["document"]["without_text"] == [{"file": "book.pdf", "page": 2}]
    assert "\ndocument book.pdf · 2 pages · " in f"\n{outcome.err}"


def test_no_torch_and_no_reader_that_is_not_needed(book: Path) -> None:
    heavy = ("torch", "transformers", "numpy", "pypdfium2", "lxml", "selectolax", "rapidocr")
    code = (
        "import sys; from kvcli.cli.app import run; code = run(sys.argv[1:]);"
        f"print(json.dumps([m for m in {heavy!r} if m in sys.modules]), file=sys.stderr); sys.exit(code)"
    )
    for args, allowed in ((["--help"], []), (["extract", "-q", str(book)], []), (["extract", "-h"], [])):
        done = subprocess.run([sys.executable, "-c", "import json; " + code, *args], capture_output=True, check=True)
        assert json.loads(done.stderr) == allowed


@pytest.mark.usefixtures("book")
def test_the_cache_lists_and_deletes_extracted_texts(call: Call, validate: Validate) -> None:
    first = call("extract", "-q", "book.pdf").out
    assert call("extract", "-q", "book.pdf").out == first
    listed = call("cache", "ls", "--json").json
    validate(listed)
    assert [text["name"] for text in listed["texts"]] == ["book.pdf"]
    assert "texts    1 " in call("cache", "ls").err
    place = Path(listed["texts"][0]["path"])
    place.write_bytes(place.read_bytes()[:-1])
    assert call("extract", "-q", "book.pdf").out == first
    gone = call("cache", "rm", "--all", "--json").json
    validate(gone)
    assert gone["texts"] == ["book.pdf"]
    assert not place.exists()


def test_addresses_of_this_computer_need_an_option(call: Call) -> None:
    outcome = call("extract", "http://127.0.0.1:9/")
    assert outcome.code == 3
    assert "--allow-private" in outcome.err
