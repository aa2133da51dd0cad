"""Libraries: only changed files are read again, and a question finds its file and cites it with its page."""

from __future__ import annotations

import json
from pathlib import Path
from shutil import rmtree

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvcli.corpus.library import Library
from kvcli.documents import Document, Options
from kvcli.retrieval.quotes import QuoteSearch, candidates_by_words
from kvcli.retrieval.sentences import SentenceIndex
from kvcli.utils.files import sha256
from tests.e2e.conftest import Call, Validate
from tests.unit.models.test_encoder import made as save_encoder

POLICY = ("--policy", "keydiff(budget=96)", "--chunk-size", "64")
TEXTS = {
    "tea.txt": "Tea grows in the hills of Assam. It is picked by hand in the early morning. ",
    "ice.txt": "The glacier of Aletsch is the longest one of the Alps. It loses fifty metres a year. ",
    "wax.txt": "Bees make wax in eight glands. A pound of wax needs eight pounds of honey. ",
}


@pytest.fixture(autouse=True)
def documents(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("KVCLI_DATA_DIR", str(tmp_path / "data"))
    for name, text in TEXTS.items():
        (folder / name).write_text(text * 3)
    return list(TEXTS)


def test_only_changed_files_are_read_again(
    call: Call, tiny_model: Path, folder: Path, shelf: Path, documents: list[str], validate: Validate
) -> None:
    add = ("library", "add", "-m", tiny_model, *POLICY, "papers")
    assert call(*add, *documents).code == 0
    assert len(list(shelf.glob("*.kv"))) == 3
    listed = call("library", "ls", "papers", "--json").json
    validate(listed)
    validate(call("library", "ls", "--json").json)
    assert [Path(row["path"]).name for row in listed["library"]["files"]] == documents
    assert all(row["read"] and not row["changed"] for row in listed["library"]["files"])
    before = {path.name: path.stat().st_mtime_ns for path in shelf.glob("*.kv")}
    again = call(*add, *documents)
    assert (again.code, "3 unchanged" in again.err, "prefill" in again.err) == (0, True, False)
    (folder / "ice.txt").write_text("The glacier has gone. " * 9)
    (folder / "new.txt").write_text("Something else is new. " * 9)
    (folder / "bad.txt").write_bytes(b"\x00\x01\x02" * 99)
    assert [r["changed"] for r in call("library", "ls", "papers", "--json").json["library"]["files"]] == [0, 1, 0]
    changed = call(*add, "tea.txt", "ice.txt", "new.txt", "bad.txt")
    assert changed.code == 8
    assert "2 files added or changed" in changed.err
    assert {p.name: p.stat().st_mtime_ns for p in shelf.glob("*.kv") if p.name in before} == before
    assert call("library", "rm", "papers", "tea.txt").code == 0
    assert len(call("library", "ls", "papers", "--json").json["library"]["files"]) == 3
    assert call("library", "rm", "papers").code == 0
    assert call("library", "ls", "--json").json["libraries"] == []
    assert not list((Path(str(folder.parent)) / "data" / "libraries").glob("*/*.json"))


def test_a_question_is_answered_from_the_file_that_answers(
    call: Call, wide_model: Path, documents: list[str], validate: Validate, folder: Path
) -> None:
    assert call("library", "add", "-q", "-m", wide_model, *POLICY, "papers", *documents).code == 0
    args = ("-m", wide_model, *POLICY, "-n", "6", "--json")
    for question, name, words in (
        ("How many glands have bees?", "wax.txt", "eight glands"),
        ("Which glacier is the longest one of the Alps?", "ice.txt", "Aletsch"),
    ):
        outcome = call("ask", *args, "@papers", question, "--top", "2")
        assert outcome.code == 0, outcome.err
        found = outcome.json
        validate(found)
        assert found["kv"]["cache"] == "hit"
        assert found["document"]["files"][0] == str(folder / name)
        first = found["quotes"][0]
        assert (first["source"], words in first["text"]) == (str(folder / name), True)
        assert 1 <= len(found["quotes"]) <= 2
    again = call("ask", "-c", *args, "And where does tea grow?")
    assert again.code == 0, again.err
    assert "@papers · 3 files" in again.err
    assert again.json["document"]["files"][0] == str(folder / "tea.txt")
    (folder / "tea.txt").unlink()
    assert "1 file changed" in call("ask", *args, "@papers", "Where does tea grow?").err


def test_a_model_that_answers_in_words_of_a_sentence_does_so_for_a_library(
    call: Call, wide_model: Path, documents: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As for the file alone. A recipe that is named, and a question about nothing in the files, are as before."""
    monkeypatch.setattr("kvcli.models.defaults.ASKED_BY_EXAMPLES", (str(wide_model),))
    assert call("library", "add", "-q", "-m", wide_model, "papers", *documents).code == 0
    args = ("-m", wide_model, "-n", "6", "--json")
    question = "How many glands have bees?"
    found = call("ask", *args, "@papers", question)
    assert found.code == 0, found.err
    files = [str(folder / name) for name in documents]
    assert set(found.json["document"]["files"]) <= set(files)
    assert any(found.json["answer"] in text * 3 for text in TEXTS.values())
    assert found.json["quotes"][0]["source"] == str(folder / "wax.txt")
    assert "passage" not in found.err
    assert "@papers · 3 files" in call("ask", "-c", *args, "Where does tea grow?").err
    for others in (("@papers", question, *POLICY), ("@papers", "Who is the mayor of Vienna?")):
        assert "passage" in call("ask", *args, *others).err


@pytest.mark.parametrize(
    ("args", "code"),
    [
        (("ask", "@nothing", "Who?"), 2),
        (("ask", "tea.txt", "Who?", "--top", "3"), 2),
        (("ask", "@nothing", "tea.txt", "Who?"), 2),
        (("ask", "@nothing", "Who?", "--over", "chapters"), 2),
        (("library", "ls", "nothing"), 2),
        (("library", "rm", "nothing"), 2),
        (("library", "add", "../up", "tea.txt"), 2),
        (("library", "add", "papers", "no-*.txt"), 3),
    ],
)
def test_bad_input_is_one_line(call: Call, args: tuple[str, ...], code: int) -> None:
    outcome = call(*args)
    assert (outcome.code, outcome.out) == (code, "")
    assert len([line for line in outcome.err.splitlines() if "error:" in line]) == 1


def test_a_damaged_library_is_named(call: Call, tmp_path: Path, documents: list[str]) -> None:
    library = Library("papers")
    with library.writing():
        library.add(documents[0], sha256(Path(documents[0])), Options())
    (index,) = library.folder.glob("*.npz")
    index.write_bytes(index.read_bytes()[:50])
    outcome = call("ask", "@papers", "Who?", "-m", tmp_path / "none")
    assert outcome.code in (4, 7)
    (library.folder / "library.json").write_text(json.dumps({"format": 99}))
    assert call("library", "ls", "papers").code == 7


def test_a_search_over_one_file_is_that_of_the_file(documents: list[str], call: Call) -> None:
    """The stored text and index give the sentences of a search in the document itself."""
    assert call
    library = Library("papers")
    with library.writing():
        for name in documents[:1]:
            entry, new = library.add(name, sha256(Path(name)), Options())
            assert new
    (kept,) = library.entries.values()
    assert kept == entry
    found = library.search("Where does tea grow?", 3)
    direct = QuoteSearch(library.document(entry), "Where does tea grow?", count=3).quotes()
    assert found.hits[0].quote == direct.quotes[0]
    assert found.likely == direct.likely
    whole, quotes = found.joined()
    for hit, quote in zip(found.hits, quotes.quotes, strict=True):
        assert whole.text[quote.char_start : quote.char_end] == hit.quote.text


def test_quotes_of_several_files_are_where_they_say(documents: list[str], call: Call) -> None:
    assert call
    library = Library("papers")
    with library.writing():
        for name in documents:
            library.add(name, sha256(Path(name)), Options())
    found = library.search("What is the longest glacier, and how much honey needs a pound of wax?", 6)
    whole, quotes = found.joined()
    assert len({quote.source for quote in quotes.quotes}) > 1
    for quote in quotes.quotes:
        assert whole.text[quote.char_start : quote.char_end] == quote.text
        assert whole.at(quote.char_start).file == quote.source


def test_embeddings_rank_beside_words_and_only_changed_files_are_embedded(
    call: Call, folder: Path, documents: list[str], wide_model: Path, validate: Validate
) -> None:
    """A sentence without a word of the question is found by its vector; an encoder that is gone or new is named."""
    encoder = save_encoder(folder / "encoder")
    (folder / "sea.txt").write_text("The ship sails at night. " * 3)
    names, add = [*documents, "sea.txt"], ("library", "add", "papers", "--no-prefill")
    assert "4 files embedded" in call(*add, "--embed", "encoder", *names).err
    listed = call("library", "ls", "papers", "--json").json
    validate(listed)
    assert listed["library"]["encoder"] == str(encoder)
    assert str(encoder) in call("library", "ls").out
    library = Library("papers")
    same = "ship sails at night"
    embedded = library.search(same, 4)
    assert embedded.best.files == (str(folder / "sea.txt"),)
    assert len({hit.entry.path for hit in embedded.hits}) > 1, "files without a shared word are ranked too"
    assert sum(hit.quote.score for hit in embedded.hits) <= 1 + 1e-6

    before = {path.name: path.stat().st_mtime_ns for path in library.folder.glob("*.npy")}
    (folder / "sea.txt").write_text("The captain sails in winter. " * 3)
    assert "1 file embedded" in call(*add, *names).err
    after = {path.name: path.stat().st_mtime_ns for path in library.folder.glob("*.npy")}
    assert len(after) == 4
    assert len(before.items() & after.items()) == 3

    ask = ("ask", "-m", wide_model, *POLICY, "-n", "4", "@papers", "who sails")
    assert call(*ask).code == 0
    for change in (lambda: save_encoder(folder / "encoder", pooling=None, seed=5), lambda: rmtree(encoder)):
        change()
        outcome = call(*ask)
        errors = [line for line in outcome.err.splitlines() if "error:" in line]
        assert (outcome.code, len(errors)) == (4, 1), outcome.err
        assert "library add papers --embed" in outcome.err
    save_encoder(encoder, seed=5)
    assert "4 files embedded" in call(*add, "--embed", "encoder", *names).err
    assert call(*ask).code == 0
    cross = save_encoder(folder / "cross", classes=1)
    assert "makes no embeddings" in call(*add, "--embed", cross, *names).err


@settings(max_examples=25)
@given(st.lists(st.sampled_from(["The sky is blue.", "Anna sings.", "# Songs\n\n", "12 men came", "\n\n"]), min_size=1))
def test_an_index_that_was_stored_ranks_as_before(pieces: list[str]) -> None:
    document = Document.of_text(" ".join(pieces))
    index = SentenceIndex(document)
    again = SentenceIndex.restore(document, index.arrays())
    for question in ("Who sings?", "Is the sky blue?", "songs of men"):
        assert candidates_by_words(again, question) == candidates_by_words(index, question)
