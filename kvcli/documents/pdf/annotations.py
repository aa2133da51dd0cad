"""What is on a page but not in its content stream: values of form fields, notes written on it, comments, films."""

import contextlib
import ctypes
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from kvcli.documents.pdf.words import Word

MOST = 20_000
"""Annotations of one page."""

LONGEST = 100_000
"""Characters of one annotation."""

LINE = 13.0
"""Height of a line of text in a field, in points."""

TICKED, NOT_TICKED = "☒", "☐"

Edges = tuple[float, float, float, float]

_HIDDEN = 2 | 32  # hidden, not viewed
_PASSWORD = 1 << 13
_PUSH_BUTTON, _CHECK_BOX, _RADIO, _COMBO, _LIST, _TEXT, _SIGNATURE = range(1, 8)
_FREE_TEXT, _LINK, _POPUP, _FILE, _WIDGET = 3, 2, 16, 17, 20
_MEDIA = {18: "sound", 19: "film", 21: "film", 25: "3D model", 26: "film"}


def annotations(
    page: Any, form: Any, place: Callable[[float, float, float, float], Edges], turns: int
) -> dict[str, Any]:
    """What the annotations of a page hold.

    ``words`` are values of fields and notes written on the page, at their places; ``comments`` are those beside the
    text, each as author and words; ``unread`` names what has no text. ``place`` gives edges in points from the page's
    upper left corner, ``turns`` is how the page's words are turned.
    """
    from pypdfium2 import raw

    words: list[Word] = []
    unread: list[str] = []
    comments: list[tuple[str, str]] = []
    for i in range(min(MOST, max(0, raw.FPDFPage_GetAnnotCount(page)))):
        with contextlib.suppress(Exception), _annotation(page, i) as annotation:
            kind = raw.FPDFAnnot_GetSubtype(annotation)
            if raw.FPDFAnnot_GetFlags(annotation) & _HIDDEN or kind in (_LINK, _POPUP):
                continue
            if kind == _WIDGET:
                text = _value(annotation, form)
            elif kind == _FREE_TEXT:
                text = _string(annotation, b"Contents")
            else:
                if kind in _MEDIA:
                    unread.append(_MEDIA[kind])
                elif kind != _FILE and (said := _string(annotation, b"Contents").strip()):
                    comments.append((_string(annotation, b"T"), said))
                continue
            rectangle = raw.FS_RECTF()
            if text.strip() and raw.FPDFAnnot_GetRect(annotation, ctypes.byref(rectangle)):
                edges = place(rectangle.left, rectangle.bottom, rectangle.right, rectangle.top)
                words += _written(text, *edges, turns)
    return {"words": words, "comments": comments, "unread": unread}


@contextlib.contextmanager
def _annotation(page: Any, index: int) -> Iterator[Any]:
    from pypdfium2 import raw

    annotation = raw.FPDFPage_GetAnnot(page, index)
    try:
        yield annotation
    finally:
        raw.FPDFPage_CloseAnnot(annotation)


def _value(annotation: Any, form: Any) -> str:
    """What is filled in to a field; boxes and buttons as ☒ and ☐."""
    from pypdfium2 import raw

    if form is None:
        return _string(annotation, b"V")
    kind = raw.FPDFAnnot_GetFormFieldType(form, annotation)
    if kind in (_CHECK_BOX, _RADIO):
        return TICKED if raw.FPDFAnnot_IsChecked(form, annotation) else NOT_TICKED
    if kind in (_PUSH_BUTTON, _SIGNATURE):
        return ""
    if kind == _TEXT and raw.FPDFAnnot_GetFormFieldFlags(form, annotation) & _PASSWORD:
        return ""
    if kind in (_COMBO, _LIST):
        count = min(MOST, max(0, raw.FPDFAnnot_GetOptionCount(form, annotation)))
        chosen = [
            _read(partial(raw.FPDFAnnot_GetOptionLabel, form, annotation, i))
            for i in range(count)
            if raw.FPDFAnnot_IsOptionSelected(form, annotation, i)
        ]
        if chosen:
            return ", ".join(chosen)
    return _read(partial(raw.FPDFAnnot_GetFormFieldValue, form, annotation))


def _string(annotation: Any, key: bytes) -> str:
    from pypdfium2 import raw

    return _read(partial(raw.FPDFAnnot_GetStringValue, annotation, key))


def _read(call: Callable[[Any, int], int]) -> str:
    """A text of PDFium: its size in bytes first, then UTF-16 with a zero at the end."""
    size = min(call(None, 0), 2 * LONGEST)
    if size <= 2:
        return ""
    buffer = (ctypes.c_ushort * (size // 2 + 1))()
    call(buffer, size)
    return bytes(buffer)[: size - 2].decode("utf-16-le", "replace").split("\0")[0]


def _written(text: str, x0: float, y0: float, x1: float, y1: float, turns: int) -> Iterator[Word]:
    """The lines of a text in a box, from its top; a single one in its middle."""
    lines = [line.strip() for line in text.replace("\r\n", "\n").replace("\r", "\n").split("\n") if line.strip()]
    height = min(LINE, max(1.0, (y1 - y0) / max(1, len(lines))))
    top = (y0 + y1 - height) / 2 if len(lines) == 1 and y1 - y0 < 3 * LINE else y0
    for i, line in enumerate(lines[::-1] if turns == 2 else lines):
        width = min(max(x1 - x0, 1.0), 0.5 * height * len(line))
        y = round(top + i * height, 1)
        yield Word(line, round(x0, 1), y, round(x0 + width, 1), round(y + height, 1), turns, True)
