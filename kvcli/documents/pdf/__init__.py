"""PDF: pages with labels and the outline's sections; scans, encrypted and damaged files are refused by name."""

import json
import re
from bisect import bisect_right
from collections import Counter
from typing import Any

from kvcli.documents.document import Extract, Part, Source
from kvcli.documents.flow import comment, left_out
from kvcli.documents.isolated import run
from kvcli.documents.pages import around, mark, named, select, shown
from kvcli.documents.pdf import inside, layout, paragraphs
from kvcli.documents.pdf.damage import ends
from kvcli.documents.pdf.fonts import UNKNOWN
from kvcli.documents.pdf.heads import running_heads
from kvcli.documents.pdf.pdfium import NEAR
from kvcli.documents.pdf.words import Word
from kvcli.errors import InputError

PAGES = 50_000
"""More pages than this are no book."""

WHY = "fonts without a mapping to Unicode"
"""Why characters cannot be decoded."""

STAMP = 200
"""Characters on a page with a picture on it, below which the picture is the page."""


def extract(source: Source) -> Extract:
    """The pages of a PDF. Raises ``InputError`` for one that is encrypted, damaged or a scan."""
    head, pages = _read(source)
    if head["form"]:
        return _form(source, head["form"])
    chosen = select(source.options.pages, len(pages), source.name)
    known = Counter(word[0].strip(".,;:!?()“”‘’\"'").lower() for page in pages for word in page["words"])
    for page in pages:
        if _is_unknown(page):
            page["words"] = [w for w in page["words"] if w[0].strip(UNKNOWN)]
        page["lines"] = layout.lines([Word(*w) for w in page["words"]], known)
    lines = [p["lines"] for p in pages]
    read = len(around(source.options.pages, len(pages), NEAR))
    heads = running_heads(lines, [p["height"] for p in pages], [p["label"] for p in pages], read)
    notes = _drop(pages, heads)
    hyphens = paragraphs.Hyphens(line.text for p in pages for line in p["lines"])
    texts = [paragraphs.flow(p["lines"], hyphens) for p in pages]
    for i in range(len(texts) - 1):
        texts[i], texts[i + 1] = paragraphs.across(texts[i], texts[i + 1], hyphens)
    texts = [paragraphs.finish(t) for t in texts]
    bare = {p["page"] for p, t in zip(pages, texts, strict=True) if p.get("picture") and len(t) < STAMP} & set(chosen)
    found = Extract([], pages=len(chosen), notes=notes)
    unknown = {n for n in chosen if _is_unknown(pages[n - 1])}
    if source.options.ocr and (asked := bare | unknown):
        from kvcli.documents.pdf import ocr

        for number, text in ocr.pages(source, sorted(asked)).items():
            texts[number - 1] = text
            pages[number - 1] |= {"unknown": 0, "guessed": 0}
        notes.append(f"{source.name}: {named(asked)} read by OCR")
        bare = {n for n in asked if not texts[n - 1].strip()}
        unknown = set()
    if not head["files"]:
        _refuse_unknown(source, unknown, chosen)
        _refuse_scan(source, bare, chosen, texts)
    found.warnings += _letters(source, [pages[n - 1] for n in chosen], unknown)
    found.without_text = [n for n in chosen if not texts[n - 1].strip()]
    if bare:
        found.warnings.append(f"{source.name}: {named(bare)} skipped: mostly images, with almost no text; use --ocr")
    shows = [n for n in chosen if pages[n - 1].get("picture") and n not in bare and not source.options.ocr]
    if shows:
        notes.append(f"{source.name}: pictures on pages {shown(shows)} were not read")
    for page in (pages[n - 1] for n in chosen if pages[n - 1]["cut"]):
        found.warnings.append(f"{source.name}: page {page['page']} is cut; {page['cut']:,} characters were not read")
    if not head["whole"]:
        found.warnings.append(f"{source.name}: its cross-reference table was damaged and has been rebuilt")
    elif head["lost"]:
        found.warnings.append(f"{source.name} is damaged: {head['lost']:,} objects are not where its table says")
    if head["unsure"]:
        found.warnings.append(f"{source.name}: {head['unsure']:,} of its compressed streams have a wrong check sum")
    found.warnings += _layers(source, head["layers"])
    found.notes += left_out(Counter(kind for n in chosen for kind in pages[n - 1].get("unread", ())), source.name)
    if head["strays"] and not head["attached"]:  # which may be PDFs
        found.warnings.append(
            f"{source.name} has {head['strays']:,} unlisted page objects; pages were removed, or it is damaged"
        )
    sections = _sections(head["outline"])
    for n in chosen:
        label = pages[n - 1]["label"]
        texts[n - 1] = "\n\n".join([texts[n - 1], *(comment(*c) for c in pages[n - 1].get("comments", ()))]).strip("\n")
        above = f"{mark(n, label)}\n"
        found.parts.append(Part(f"{above}{texts[n - 1]}\n\n", len(above), n, label, sections(n)))
    told = inside.add(found, source, head["files"]) if head["files"] and not source.inner else []
    found.warnings += _attached(source, [name for name in head["attached"] if name not in told])
    return found


def _form(source: Source, lines: list[str]) -> Extract:
    """A dynamic XFA form: its page only says to wait, and a program would have to build the others."""
    above, text = f"{mark(1)}\n", "\n\n".join(lines)
    how = "its words and values were read in the order of its template, without its scripts"
    warning = f"{source.name} is a dynamic XFA form: {how}"
    return Extract([Part(f"{above}{text}\n\n", len(above), 1)], pages=1, warnings=[warning])


def _read(source: Source) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """What the process of :mod:`kvcli.documents.pdf.pdfium` says of the document and of each page."""
    name, quoted, fetch = source.name, source.quoted, "fetch the file again"
    ranges = source.options.pages
    answers = run("kvcli.documents.pdf.pdfium", source, json.dumps(ranges))
    head: dict[str, Any] = next(answers, {"error": 0})
    if (code := head.get("error")) is not None:
        answers.close()
        if code == 4:
            decrypt = f"qpdf --decrypt --password=PASSWORD {quoted} open.pdf"
            raise InputError(
                f"{name} is encrypted and asks for a password; remove it first, which kvcli cannot do",
                decrypt,
            )
        raise InputError(f"{name} is damaged: PDFium cannot open it ({len(source.data):,} bytes)", fetch)
    if not ends(source.data):
        answers.close()
        size = f"{len(source.data):,} bytes"
        raise InputError(f"{name} is damaged: it breaks off after {size}, before the mark that ends a PDF", fetch)
    if head["form"]:
        answers.close()
        return head, []
    if head["dynamic"]:
        answers.close()
        raise InputError(
            f"{name} is a dynamic XFA form: its only page says to wait, and the form is not in it",
            "open it in Adobe Reader, print it to a PDF, and name that one",
        )
    if head["broken"]:
        answers.close()
        raise InputError(f"{name} is damaged: {head['broken']:,} of its compressed streams do not unpack", fetch)
    if not 0 < head["pages"] <= PAGES:
        answers.close()
        raise InputError(f"{name} has {head['pages']:,} pages; kvcli reads 1 to {PAGES:,}", fetch)
    rest = list(answers)
    head["files"] = [p for p in rest if "file" in p]
    pages = [p for p in rest if "page" in p]
    good = [p["page"] for p in pages if "error" not in p]
    if wrong := sorted({*select(ranges, head["pages"], name)} - {*good}):
        good = sorted({*good} & {*select(ranges, head["pages"], name)})
        others = f"--pages {shown(good).replace('–', '-').replace(' ', '')} reads the others" if good else fetch
        raise InputError(f"{name} is damaged: {named(wrong)} cannot be read", others)
    blank: dict[str, Any] = {"label": None, "height": 1.0, "words": [], "cut": 0}
    read = {p["page"]: p for p in pages if "error" not in p}
    return head, [read.get(n) or {"page": n, **blank} for n in range(1, head["pages"] + 1)]


def _drop(pages: list[dict[str, Any]], heads: list[dict[int, str]]) -> list[str]:
    """Take running heads out of the pages; says what was taken.

    The first of its kind stays if nothing else in the document says the same: it may be the only title. A page
    that is all head keeps what no page with a body has, if it is no scan.
    """
    body = {
        _words(line.text)
        for page, drop in zip(pages, heads, strict=True)
        for i, line in enumerate(page["lines"])
        if i not in drop
    }
    filled = [len(drop) < len(page["lines"]) for page, drop in zip(pages, heads, strict=True)]
    running = {kind for full, drop in zip(filled, heads, strict=True) if full for kind in drop.values()}
    seen: Counter[str] = Counter()
    for full, page, drop in zip(filled, pages, heads, strict=True):
        lines = page["lines"]
        if not full and not page.get("picture") and not running.issuperset(drop.values()):
            continue
        for i, text in sorted(drop.items()):
            kind, words = paragraphs.clean(text), _words(text)
            number = 2 if words[1:2] and words[1].isdecimal() else 0
            said = words, words[number:]  # "Chapter 4. Packages" says what "PACKAGES" says
            if any(map(str.isalpha, words)) and body.isdisjoint(said):
                body.add(words)
                del drop[i]
            else:
                seen[kind] += 1
        page["lines"] = [line for i, line in enumerate(lines) if i not in drop]
    common = seen.most_common()
    shown_ = ", ".join(f"“{t[:60]}” ×{n}" for t, n in common[:5])
    more = f" and {len(common) - 5} more" if len(common) > 5 else ""
    return [f"running heads and feet left out: {shown_}{more}"] if common else []


def _words(text: str) -> tuple[str, ...]:
    return tuple(re.findall(r"[^\W_]+", paragraphs.clean(text).casefold()))


def _refuse_scan(source: Source, bare: set[int], chosen: list[int], texts: list[str]) -> None:
    """Refuse a document of which half or more is pictures, whatever stamps are on them."""
    if 2 * len(bare) < len(chosen) or not bare:
        if any(texts[n - 1].strip() for n in chosen):
            return
        raise InputError(
            f"{source.name} has no text, {named(chosen)} being empty", f"look at it: kvcli extract {source.quoted}"
        )
    characters = sum(len(texts[n - 1].strip()) for n in bare)
    rest = f", but for {characters:,} characters of stamps" if characters else ""
    are = "is an image" if len(bare) == 1 else "are images"
    if source.options.ocr:
        raise InputError(f"{source.name}: OCR found no text on {named(bare)}", "scan it with more dots per inch")
    raise InputError(
        f"{source.name}: {named(bare)} {are} without text{rest}",
        "read it with OCR: the same command with --ocr (pip install 'kvcli[ocr]')",
    )


def _attached(source: Source, names: list[str]) -> list[str]:
    """A warning of files within the file."""
    shown_ = ", ".join(names[:5]) + (f" and {len(names) - 5:,} more" if len(names) > 5 else "")
    save = f"save them with pdfdetach -saveall {source.quoted}"
    return [f"{source.name}: files within it were not read: {shown_}; {save}"] if names else []


def _layers(source: Source, names: list[str] | None) -> list[str]:
    """A warning of layers that are switched off, or of layers that cannot be told (``None``)."""
    if names is None:
        return [f"{source.name}: kvcli could not find out which layers are switched off; all were read"]
    shown_ = ", ".join(name[:60] or "unnamed" for name in names[:5])
    more = f" and {len(names) - 5:,} more" if len(names) > 5 else ""
    return [f"{source.name}: layers that are switched off were not read: {shown_}{more}"] if names else []


def _is_unknown(page: dict[str, Any]) -> bool:
    """Whether most characters of a page are numbers of glyphs that no font maps to letters."""
    return 2 * int(page.get("unknown", 0)) > sum(len(w[0]) for w in page["words"])


def _refuse_unknown(source: Source, unknown: set[int], chosen: list[int]) -> None:
    """Refuse a document of which half or more of the pages have letters that cannot be told."""
    if unknown and 2 * len(unknown) >= len(chosen):
        raise InputError(
            f"{source.name}: the characters of {named(unknown)} could not be decoded: {WHY}",
            "read the printed page: the same command with --ocr (pip install 'kvcli[ocr]')",
        )


def _letters(source: Source, pages: list[dict[str, Any]], unknown: set[int]) -> list[str]:
    """Warnings of letters that cannot be told, and of those that are guessed."""
    found = []
    if unknown:
        found.append(f"{source.name}: {named(unknown)} skipped: {WHY}; use --ocr")
    some = {p["page"]: p["unknown"] for p in pages if p.get("unknown") and p["page"] not in unknown}
    if some:
        found.append(
            f"{source.name}: {sum(some.values()):,} characters on {named(some)} could not be decoded and are {UNKNOWN}:"
            f" {WHY}"
        )
    guessed = {p["page"] for p in pages if p.get("guessed")}
    if guessed:
        found.append(
            f"{source.name}: the characters on {named(guessed)} are guessed: {WHY}; compare them with the page"
        )
    return found


def _sections(outline: list[tuple[int, str, int]]) -> Any:
    """A function from a page number to the path of outline entries in force where the page begins or on it."""
    path: list[str] = []
    at: dict[int, str] = {}
    for level, title, page in outline:
        path[level:] = [title]
        at.setdefault(page, "") if not title else at.__setitem__(page, " › ".join(t for t in path if t))
    starts = sorted(at)

    def section(number: int) -> str | None:
        i = bisect_right(starts, number)
        return at[starts[i - 1]] or None if i else None

    return section
