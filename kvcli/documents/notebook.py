"""Jupyter notebooks: text cells as Markdown, code with its printed output; pictures are counted."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any

from kvcli.documents.document import Extract, Source
from kvcli.documents.flow import left_out
from kvcli.documents.plain import sections
from kvcli.documents.text import decode
from kvcli.errors import InputError


def extract(source: Source) -> Extract:
    """The cells in order. Raises ``InputError`` for a file that is no notebook."""
    text, warnings = decode(source.data, source.name, source.quoted)
    left: Counter[str] = Counter()
    try:
        found = json.loads(text)
        sheets = found.get("worksheets") or [found]  # of format 3
        language = str(found.get("metadata", {}).get("kernelspec", {}).get("language", "python"))
        cells = [each for sheet in sheets for cell in sheet["cells"] for each in _cell(cell, language, left)]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        why = f"{source.name} is no Jupyter notebook: {type(error).__name__} {error}"
        raise InputError(why[:200], f"read it as text: cat {source.quoted} | kvcli ask") from None
    body = "\n\n".join(cell.strip("\n") for cell in cells if cell.strip()) + "\n"
    return Extract(sections(body) if body.strip() else [], warnings=warnings, notes=left_out(left, source.name))


def _cell(cell: dict[str, Any], language: str, left: Counter[str]) -> Iterator[str]:
    text = _joined(cell.get("source", cell.get("input", "")))
    if cell["cell_type"] != "code":
        yield text
        return
    if text.strip():
        yield _fenced(text, language)
    for output in cell.get("outputs", []):
        data = output.get("data", output)
        picture = any(str(kind).startswith("image/") for kind in data)
        left["picture"] += picture
        shown = _joined(output.get("text", "")) or ("" if picture else _joined(data.get("text/plain", "")))
        if output.get("output_type") == "error":
            shown = f"{output.get('ename', '')}: {output.get('evalue', '')}"
        if shown.strip():
            yield _fenced(shown, "")


def _joined(text: Any) -> str:
    """The text of a field, which is one text or a list of lines."""
    return "".join(text) if isinstance(text, list) else str(text)


def _fenced(text: str, language: str) -> str:
    fence = "`" * max([3, *(1 + len(run) for run in re.findall("`+", text))])
    return f"{fence}{language}\n{text.strip(chr(10))}\n{fence}"
