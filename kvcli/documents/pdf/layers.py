"""Layers (optional content) that a PDF switches off: PDFium reads their text although no viewer shows it.

A copy of the file marks what is hidden. :func:`marked` appends new versions of the groups of content, forms and
annotations that are off (PDF 2.0, 8.11). :func:`hidden` finds the characters under such a mark.
"""

import contextlib
import ctypes
import re
import zlib
from collections.abc import Iterator
from io import BytesIO
from typing import Any

MARK = "kvcli: not shown"
"""The name that the copy gives to a group that is off."""

INFLATED = 1 << 28
"""Bytes that all streams of objects together may unpack to while layers are looked for."""

DEEP = 16
"""How deep forms and expressions may be nested."""

_OBJECTS = re.compile(rb"/Type\s*/ObjStm(?:[^<>]|<<[^<>]*>>|<[0-9a-fA-F\s]*>){0,2000}>>\s*stream\r?\n")


def has_layers(data: bytes) -> bool:
    """Whether a file may have layers: it names them, in its own text or in its compressed objects."""
    if b"/OCProperties" in data:
        return True
    if b"/Encrypt" in data:
        return b"/ObjStm" in data  # what they hold cannot be read here
    room = INFLATED
    for match in _OBJECTS.finditer(data):
        with contextlib.suppress(zlib.error):
            end = data.find(b"endstream", match.end())
            found = zlib.decompressobj().decompress(data[match.end() : end if end >= 0 else len(data)], room)
            room -= len(found)
            if b"/OCProperties" in found:
                return True
        if room <= 0:
            return True
    return False


def marked(data: bytes) -> tuple[bytes, list[str]]:
    """The file with marks on what its layers hide, and the names of the layers that are off.

    Raises:
        Exception: of any kind; pypdf cannot read the file.
    """
    from pypdf import PdfReader, PdfWriter
    from pypdf.generic import NameObject, NumberObject, StreamObject, TextStringObject

    reader = PdfReader(BytesIO(data))
    properties = reader.trailer["/Root"].get("/OCProperties")
    if properties is None:
        return data, []
    off = _off(properties.get_object())
    if not off:
        return data, []
    encrypted = reader.is_encrypted and bool(reader.decrypt(""))
    writer = PdfWriter(clone_from=reader) if encrypted else PdfWriter(BytesIO(data), incremental=True)
    groups = _Groups(_off(writer.root_object["/OCProperties"].get_object()))
    for page in writer.pages:
        for resources in _resources(page, 0, set()):
            for group in _values(resources.get("/Properties")):
                if groups.hides(group):
                    group[NameObject("/Name")] = TextStringObject(MARK)
            for form in _values(resources.get("/XObject")):
                if isinstance(form, StreamObject) and groups.hides(form.get("/OC")):
                    form.set_data(b"")
        for annotation in _values(page.get("/Annots")):
            if groups.hides(annotation.get("/OC")):
                annotation[NameObject("/F")] = NumberObject(int(annotation.get("/F", 0)) | 2)
    out = BytesIO()
    writer.write(out)
    return out.getvalue(), sorted(off.values())


def hidden(text: Any, count: int) -> list[int]:
    """The characters, by PDFium's index, of a page of the marked file that no viewer shows."""
    from pypdfium2 import raw

    known: dict[int, bool] = {}
    found = []
    for i in range(count):
        item = raw.FPDFText_GetTextObject(text.raw, i)
        if not item:
            continue
        address = ctypes.addressof(item.contents)
        if address not in known:
            marks = (raw.FPDFPageObj_GetMark(item, k) for k in range(max(0, raw.FPDFPageObj_CountMarks(item))))
            known[address] = any(_name(mark) == MARK for mark in marks)
        if known[address]:
            found.append(i)
    return found


def _name(mark: Any) -> str:
    """The entry ``Name`` of the properties of a mark."""
    from pypdfium2 import raw

    buffer, size = (ctypes.c_ushort * 64)(), ctypes.c_ulong()
    if not raw.FPDFPageObjMark_GetParamStringValue(mark, b"Name", buffer, ctypes.sizeof(buffer), ctypes.byref(size)):
        return ""
    return bytes(buffer)[: max(0, size.value - 2)].decode("utf-16-le", "replace")


def _off(properties: Any) -> dict[int, str]:
    """The names of the groups that are off when the file is opened, by the number of their object."""
    default = _entry(properties, "/D", {})
    groups = {_number(g): g for g in _values(_entry(properties, "/OCGs"))}
    states = dict.fromkeys(groups, _entry(default, "/BaseState") != "/OFF")
    for key, state in (("/ON", True), ("/OFF", False)):
        named = {_number(g): g for g in _values(_entry(default, key))}
        groups |= named
        states |= dict.fromkeys(named, state)
    for usage in _values(_entry(default, "/AS")):
        if _entry(usage, "/Event") == "/View" and "/View" in _entry(usage, "/Category", ()):
            for group in _values(_entry(usage, "/OCGs")):
                view = _entry(_entry(_entry(group, "/Usage", {}), "/View", {}), "/ViewState")
                if view is not None and _number(group) in groups:
                    states[_number(group)] = view != "/OFF"
    return {n: str(_entry(groups[n], "/Name", "")) for n, shown in states.items() if not shown}


class _Groups:
    """Which groups are off, and which memberships of groups are hidden by that."""

    def __init__(self, off: dict[int, str]) -> None:
        self.off = off

    def hides(self, group: Any, depth: int = 0) -> bool:
        """Whether a group or membership of a mark, a form or an annotation is hidden."""
        if group is None or depth > DEEP:
            return False
        if _number(group) in self.off:
            return True
        entries = group.get_object()
        if not hasattr(entries, "get") or entries.get("/Type") != "/OCMD":
            return False
        if entries.get("/VE") is not None:
            return not self._holds(entries["/VE"], depth)
        members = entries.get("/OCGs")
        members = [members] if members is not None and hasattr(members.get_object(), "get") else members or []
        shown = [not self.hides(member, depth + 1) for member in members]
        if not shown:
            return False
        policy = entries.get("/P", "/AnyOn")
        return not {"/AllOn": all(shown), "/AnyOff": not all(shown), "/AllOff": not any(shown)}.get(policy, any(shown))

    def _holds(self, expression: Any, depth: int) -> bool:
        """A visibility expression: ``[/And …]``, ``[/Or …]``, ``[/Not x]``, or a group."""
        terms = expression.get_object()
        if depth > DEEP or not isinstance(terms, list) or not terms:
            return not self.hides(expression, depth + 1)
        values = [self._holds(term, depth + 1) for term in list.__iter__(terms[1:])]
        return {"/And": all(values), "/Not": not any(values)}.get(terms[0], any(values))


def _number(reference: Any) -> int:
    """The number of an object; 0 for one that stands where it is used."""
    found = getattr(reference, "indirect_reference", reference)
    return int(getattr(found, "idnum", 0))


def _entry(entries: Any, key: str, default: Any = None) -> Any:
    """An entry of a dictionary, not a reference to it."""
    return entries[key] if key in entries else default  # noqa: SIM401  get() gives the reference


def _values(entries: Any) -> Iterator[Any]:
    """The objects of a dictionary or an array."""
    entries = entries.get_object() if entries is not None else {}
    for value in entries.values() if hasattr(entries, "values") else entries:
        with contextlib.suppress(AttributeError):
            found = value.get_object()
            found.get  # noqa: B018  a dictionary or a stream
            yield found


def _resources(holder: Any, depth: int, seen: set[int]) -> Iterator[Any]:
    """The resources of a page and of the forms on it."""
    found = holder.get("/Resources")
    if found is None or depth > DEEP:
        return
    resources = found.get_object()
    yield resources
    for form in _values(resources.get("/XObject")):
        if form.get("/Subtype") == "/Form" and id(form) not in seen:
            seen.add(id(form))
            yield from _resources(form, depth + 1, seen)
