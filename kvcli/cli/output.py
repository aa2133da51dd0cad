"""Answers go to stdout or to the file of ``-o``: as streamed text, as complete text, or as JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from kvcli.cli.views import citations, terminal
from kvcli.cli.views import quotes as quote_lines
from kvcli.cli.views.activity import row
from kvcli.cli.views.markdown import PlainAnswer, TerminalAnswer
from kvcli.cli.views.page import Section, as_html, as_markdown
from kvcli.cli.views.wrap import columns, wrapped
from kvcli.errors import InputError, UsageError
from kvcli.prompt_cache.file_format import looks_like

if TYPE_CHECKING:
    from kvcli.documents import Document
    from kvcli.documents.cited_answer import CitedAnswer
    from kvcli.documents.pdf.highlight import Mark
    from kvcli.events import Quotes
    from kvcli.pipeline import Citations

_ANSI = re.compile(r"\x1b\[[0-9;]*m|\x1b\]8;;[^\x1b]*\x1b\\")


class AnswerWriter:
    """Writes answers one after the other; each ends in exactly one newline.

    Attributes:
        stream: whether answers are printed while they are written; ``None`` until it is known which model writes.
        heading: of the next answer, if there are several; written to pipes and files.
        citing: puts numbers into the next answer while it is streamed.
    """

    def __init__(
        self,
        path: str | None = None,
        *,
        stream: bool | None = True,
        as_json: bool = False,
        inputs: Sequence[str] = (),
        wrap: bool = True,
        headings: bool = True,
        export: str | None = None,
    ) -> None:
        self.path = path
        self.heading = ""
        self.citing: CitedAnswer | None = None
        self._sections = list[Section]()
        self._marks: list[Mark] = []
        self._inputs = inputs
        self._export = None if export is None else _check_page(export, inputs)
        self.as_json = as_json
        self.stream = False if as_json or path is not None else stream
        self._file: TextIO | None = None
        self._answers = 0
        self._terminal = path is None and terminal.is_terminal(sys.stdout)
        self._shown: TerminalAnswer | PlainAnswer | None = None
        self._markdown = wrap and self._terminal
        self._headings = headings and not as_json and not self._terminal
        if path is not None:
            refuse_output(Path(path), inputs)

    @property
    def holds(self) -> bool:
        """Whether the answer is printed, but only when it is complete."""
        return not self.stream and not self.as_json and self.path is None

    @property
    def file(self) -> TextIO:
        """Opened at the first answer: a run that fails earlier overwrites nothing."""
        if self.path is None:
            row.clear()
            return sys.stdout
        if self._file is None:
            try:
                self._file = Path(self.path).open("w", encoding="utf-8", errors="backslashreplace")  # noqa: SIM115
            except OSError as error:
                reason = f"cannot write {self.path}: {error.strerror}"
                raise InputError(reason, "another FILE for -o") from None
        return self._file

    def write(self, text: str) -> None:
        """Write a piece of the answer."""
        if self.stream:
            self._begin().write(text if self.citing is None else self.citing.push(text))

    def answer(
        self,
        text: str,
        record: dict[str, Any],
        document: Document | None,
        question: str,
        cited: Citations,
        quotes: Quotes | None,
    ) -> None:
        """Finish an answer, with its citations and the sentences that may answer below it or above it."""
        shown = self._terminal and not self.as_json
        links = sys.stdout if shown else None
        bold = question if shown else ""
        notes, first = citations.lines(document, cited, links, bold) if document else [], list[str]()
        if document and quotes is not None:
            held = not self.stream
            first, below = quote_lines.around(document, quotes, question, cited, held=held, bold=shown, links=links)
            notes += below
        notes += citations.likely(document, cited) if document else []
        self.end(text, record, notes=notes, first=first)

    def end(
        self,
        text: str,
        record: dict[str, Any],
        *,
        notes: Sequence[str] = (),
        first: Sequence[str] = (),
    ) -> None:
        """Finish the answer: ``text`` is all of it with the numbers of its quotes, ``record`` its JSON.

        ``notes`` are lines below it, ``first`` lines above it if it was not streamed.
        """
        sources = tuple(_ANSI.sub("", line) for line in (*notes, *first))
        asked = " · ".join(dict.fromkeys(filter(None, (self.heading, str(record.get("question", ""))))))
        self._sections.append(Section(asked, text.strip(), sources))
        if self._export is not None and self._export.suffix == ".pdf":
            self._marks += _marks_of(record, *_pdfs(self._inputs))
        if self.as_json:
            self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
        else:
            shown = self._begin()
            if not self.stream:
                self._paragraphs((*first, "") if first else ())
                shown.write(text)
            self._end_citing(shown)
            shown.end()
            self._paragraphs(notes)
        self._finish()

    def lines(self, lines: Sequence[str], record: dict[str, Any]) -> None:
        """Something that is no answer of a model: some lines, whose control characters are ours, or its JSON."""
        if not self.as_json:
            self._begin()
            self._paragraphs(lines)
        else:
            self.file.write(json.dumps(record, ensure_ascii=False) + "\n")
        self._finish()

    def abandon(self) -> None:
        """End the line of an answer that an error cut short."""
        if self._shown is not None:
            self._end_citing(self._shown)
            self._shown.end()
            self._finish()

    def _end_citing(self, shown: TerminalAnswer | PlainAnswer) -> None:
        if self.citing is not None:
            shown.write(self.citing.end())
            self.citing = None

    def _finish(self) -> None:
        self.file.flush()
        self._shown = None

    def _paragraphs(self, lines: Sequence[str]) -> None:
        for line in lines:
            text = wrapped(line, columns(sys.stdout), indent=2) if self._terminal else line
            self.file.write(f"{text}\n")

    def _begin(self) -> TerminalAnswer | PlainAnswer:
        """Choose the view of the next answer."""
        if self._shown is None:
            self._shown = TerminalAnswer() if self._markdown else PlainAnswer(self.file)
            if self._answers:
                self.file.write("\n")  # a blank line between answers
            if self._headings and self.heading:
                self.file.write(f"## {terminal.oneline(self.heading)}\n\n")
            self._answers += 1
        return self._shown

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._export is not None and self._sections and self._export.suffix == ".pdf":
            self._highlight(self._export)
        elif self._export is not None and self._sections:
            title = self._sections[0].question if len(self._sections) == 1 else "Answers"
            write = as_html if self._export.suffix == ".html" else as_markdown
            self._export.write_text(write(title, self._sections), encoding="utf-8", errors="backslashreplace")

    def _highlight(self, target: Path) -> None:
        """Write a copy of the PDF with the quotes of all answers."""
        from kvcli.documents.document import Source
        from kvcli.documents.pdf.highlight import highlighted

        (name,) = _pdfs(self._inputs)
        copy, found = highlighted(Source(Path(name).read_bytes(), name, name), self._marks)
        target.write_bytes(copy)
        terminal.note("export", f"{target}: {terminal.plural(found, 'quote')} of {len(self._marks)} highlighted")


def _marks_of(record: dict[str, Any], file: str) -> list[Mark]:
    """Quotes of an answer that are in a file, as highlights with the question and the answer."""
    from kvcli.documents.pdf.highlight import Mark

    note = f"{record.get('question', '')}\n\n{record.get('answer', '')}"
    cited = [(c["page"], c["quote"]) for c in record.get("citations", ()) if c["source"] == file]
    shown = [(q["page"], q["text"]) for q in record.get("quotes", ()) if q["source"] == file]
    return [Mark(page, quote, note) for page, quote in dict.fromkeys((*cited, *shown)) if page is not None]


def _pdfs(names: Sequence[str]) -> list[str]:
    found = []
    for name in names:
        with suppress(OSError, ValueError), Path(name).open("rb") as file:
            found += [name] if file.read(5) == b"%PDF-" else []
    return found


def _check_page(name: str, inputs: Sequence[str]) -> Path:
    """The path of ``--export``. Raises ``UsageError``."""
    path = Path(name)
    if path.suffix not in (".md", ".html", ".pdf"):
        raise UsageError(f"--export {name}: the name must end in .md, .html or .pdf", "--export answer.html")
    if path.suffix == ".pdf" and len(found := _pdfs(inputs)) != 1:
        why = "there is none among the documents" if not found else f"{len(found)} are among the documents"
        hint = f"--export {path.with_suffix('.html')} (a browser prints it to PDF)"
        raise UsageError(f"--export {name} is a copy of a PDF with highlights, and {why}", hint)
    refuse_output(path, inputs)
    return path


def refuse_output(path: Path, inputs: Sequence[str] = ()) -> None:
    """Refuse a path that cannot be written, or that is an input. Raises ``UsageError``."""
    if path.is_dir():
        raise UsageError(f"{path} is a directory", f"-o {path}/answer.txt")
    if not path.parent.is_dir():
        raise UsageError(f"cannot write {path}: there is no directory {path.parent}", f"mkdir -p {path.parent}")
    for name in inputs:
        if name == str(path) or (path.is_file() and Path(name).is_file() and path.samefile(name)):
            raise UsageError(f"-o {path} would overwrite the input {name}", "another FILE for -o")


def check_export_path(output: str) -> Path:
    """The path of a portable file: a new one, or an older saved prefill. Raises ``UsageError``."""
    path = Path(output)
    refuse_output(path)
    if path.exists() and not looks_like(path):
        raise UsageError(f"{path} exists and is not a saved prefill; it was not overwritten", "-o book.kv")
    return path
