"""``kvcli logs``, ``kvcli open`` and ``kvcli ask --continue``: what was asked can be looked up and gone on with."""

from __future__ import annotations

from io import BytesIO
from pathlib import Path

import pytest
from pypdf import PdfReader

from tests.e2e.conftest import Call, Validate
from tests.unit.documents.makers import Page, lines, pdf

HARBOUR = ["The old man sat by the harbour and mended", "his nets until the light was gone."]


@pytest.fixture
def book(folder: Path) -> Path:
    (folder / "book.pdf").write_bytes(pdf([Page(lines(["First leaf."])), Page(lines(HARBOUR))]))
    return folder / "book.pdf"


@pytest.mark.usefixtures("book")
def test_a_question_is_logged_opened_and_continued(
    call: Call, tiny_model: Path, folder: Path, validate: Validate
) -> None:
    assert call("open").code == 3
    assert call("logs").out == ""
    question = "Who mended nets by the harbour?"
    asked = ("ask", "-m", tiny_model, "-n", "4", "--cite", "on", "-q", "--policy", "keydiff(budget=200)")
    assert call(*asked, "book.pdf", question, "--export", "marked.pdf").code == 0
    notes = PdfReader(BytesIO((folder / "marked.pdf").read_bytes())).pages[1]["/Annots"]
    assert question in notes[0].get_object()["/Contents"]
    found = call("logs", "--json").json
    validate(found)
    assert [(e["question"], e["files"]) for e in found["logs"]] == [(question, ["book.pdf"])]
    assert question in call("logs", "--search", "NETS harbour").out
    assert call("logs", "--search", "nowhere").out == ""
    places = call("open", "--json").json
    validate(places)
    assert places["places"][0]["link"].endswith("/book.pdf#page=2")
    assert call("open", "1", "--link").out == places["places"][0]["link"] + "\n"
    assert call("open", "99").code == 3
    more = call("ask", "-c", "-n", "4", "--json", "And then?", "-q")
    assert more.code == 0, more.err
    assert more.json["kv"]["cache"] == "hit"
    assert more.json["kv"]["recipe"] == "keydiff(budget=200)"
    assert more.json["usage"]["prompt_tokens"] > len(question) + more.json["document"]["tokens"]
    assert [e["previous"] for e in call("logs", "--json").json["logs"]] == [None, 1]
    for option in ("--no-log", "--no-cache"):
        assert call("ask", "-c", "-n", "2", "-q", option, "Again?").code == 0
    assert call("logs", "off").code == 0
    assert call("ask", "-c", "-n", "2", "-q", "Again?").code == 0
    assert len(call("logs", "--json").json["logs"]) == 2
    assert call("logs", "on").code == 0
    assert call("logs", "sideways").code == 2
    assert call("logs", "clear").code == 0
    assert call("logs").out == ""


def test_each_file_by_itself_is_logged(call: Call, tiny_model: Path, folder: Path) -> None:
    for name in ("a.txt", "b.txt"):
        (folder / name).write_text(f"{name}: the old man sat by the harbour and mended his nets. " * 3)
    assert call("ask", "-m", tiny_model, "-n", "2", "--each", "-q", "a.txt", "b.txt", "Who mended nets?").code == 0
    assert [e["files"] for e in call("logs", "--json").json["logs"]] == [["a.txt"], ["b.txt"]]


def test_what_cannot_be_highlighted_is_refused_first(call: Call, folder: Path, book: Path) -> None:
    (folder / "a.txt").write_text("Words.")
    (folder / "other.pdf").write_bytes(book.read_bytes())
    for names in (("a.txt",), ("book.pdf", "other.pdf")):
        outcome = call("ask", *names, "Who?", "--export", "out.pdf")
        assert outcome.code == 2
        assert "--export out.html" in outcome.err
    assert call("ask", "book.pdf", "Who?", "--export", "book.pdf").code == 2
