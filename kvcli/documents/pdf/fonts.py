"""Letters that PDFium cannot name, by the names that their fonts give to glyphs.

PDFium does not read the glyph names of Type 3 fonts (plots of matplotlib, old papers of TeX). It does not read those
of symbols in TeX's own fonts either. Both are in the file: pypdf reads the fonts' dictionaries, and a Type 1 program
has names as text.
"""

import contextlib
import ctypes
import re
from collections.abc import Iterator
from functools import cached_property
from io import BytesIO
from typing import Any

UNKNOWN = "\ufffd"
"""A letter whose font does not say which it is."""

_BUILT_IN = re.compile(rb"dup\s+(\d{1,3})\s*/([A-Za-z0-9._]{1,40})\s+put")
_LOWER = re.compile(r"[a-zß-öø-ÿ]")
_VOWEL = re.compile(r"[aeiouyà-æè-ïò-öø-ý]")
_SIZE = re.compile(r"(?:big|Big|bigg|Bigg|text|display|wide|tp|bt)$")
_TEX = {
    "angbracketleft": "⟨", "angbracketright": "⟩", "bardbl": "‖", "latticetop": "⊤", "vextendsingle": "|",
    "summation": "∑", "product": "∏", "integral": "∫", "radical": "√", "contintegral": "∮", "hatwide": "^",
    "ceilingleft": "⌈", "ceilingright": "⌉", "floorleft": "⌊", "floorright": "⌋", "negationslash": "̸",
    "mapsto": "↦", "arrowhookleft": "↪", "openbullet": "◦", "circlecopyrt": "○", "lessorequalslant": "⩽",
    "greaterorequalslant": "⩾", "square": "□", "mho": "℧", "dotlessj": "ȷ", "slurabove": "⌢", "slurbelow": "⌣",
    "ff": "ﬀ", "ffi": "ﬃ", "ffl": "ﬄ",
}  # fmt: skip
"""Names of TeX's fonts that are not in Adobe's list of glyphs."""


class Fonts:
    """The fonts of a file. pypdf parses it only if a page needs it."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.programs: dict[str, dict[int, str]] = {}

    @cached_property
    def reader(self) -> Any:
        """pypdf's view of the file; ``None`` if the file is too broken for it."""
        from pypdf import PdfReader

        with contextlib.suppress(Exception):
            reader = PdfReader(BytesIO(self.data))
            if not reader.is_encrypted or reader.decrypt(""):
                return reader
        return None

    def page(self, number: int) -> "PageFonts":
        """The fonts of page ``number``, counted from 1."""
        return PageFonts(self, number)


class PageFonts:
    """The fonts of one page."""

    def __init__(self, fonts: Fonts, number: int) -> None:
        self.fonts, self.number = fonts, number

    def told(self, text: Any, characters: str) -> tuple[str, int, int]:
        """The characters of a page with what its fonts name, and ``UNKNOWN`` for the rest; how many are unknown.

        The third is how many are guessed: those of a font whose numbers read like a text when they are taken for ASCII.
        """
        from pypdfium2 import raw

        failed, handle = raw.FPDFText_HasUnicodeMapError, text.raw
        by_font: dict[str, list[int]] = {}
        for i, c in enumerate(characters):
            if failed(handle, i) == 1 and c != " ":
                by_font.setdefault(_name(handle, i), []).append(i)
        told, unknown, guessed = list(characters), 0, 0
        for name, places in by_font.items():
            letters = self._program(text, places[0], name) | self._names.get(name, {})
            if not letters and reads_like_text("".join(characters[i] for i in places)):
                guessed += len(places)
                continue
            for i in places:
                letter = letters.get(ord(characters[i]), "")
                told[i] = letter if len(letter) == 1 and "!" <= letter <= "\uffff" else UNKNOWN
                unknown += told[i] == UNKNOWN
        return ("".join(told) if by_font else characters), unknown, guessed

    @cached_property
    def _names(self) -> dict[str, dict[int, str]]:
        """By font name, what each character code means on this page."""
        found: dict[str, dict[int, str]] = {}
        with contextlib.suppress(Exception):
            for font in _fonts(self.fonts.reader.pages[self.number - 1].get("/Resources"), 0, []):
                with contextlib.suppress(Exception):
                    known = found.setdefault(str(font.get("/BaseFont", "")).lstrip("/"), {})
                    for code, letter in _differences(font).items():
                        if known.setdefault(code, letter) != letter:
                            known[code] = ""  # two fonts of one name do not agree
        return found

    def _program(self, text: Any, index: int, name: str) -> dict[int, str]:
        """What the embedded program of a character's font says of its codes, if it is a Type 1 program."""
        from pypdfium2 import raw

        programs = self.fonts.programs
        if name not in programs:
            data, size = b"", ctypes.c_size_t()
            font = raw.FPDFTextObj_GetFont(raw.FPDFText_GetTextObject(text.raw, index))
            if font and raw.FPDFFont_GetFontData(font, None, 0, ctypes.byref(size)) and 0 < size.value < 1 << 24:
                buffer = (ctypes.c_uint8 * size.value)()
                raw.FPDFFont_GetFontData(font, buffer, size.value, ctypes.byref(size))
                data = bytes(buffer)
            head = data[: data.find(b"eexec")] if data.startswith(b"%!") else b""
            programs[name] = {int(c): unicode_of(n.decode()) for c, n in _BUILT_IN.findall(head)}
        return programs[name]


def _name(handle: Any, index: int) -> str:
    from pypdfium2 import raw

    buffer, flags = ctypes.create_string_buffer(200), ctypes.c_int()
    raw.FPDFText_GetFontInfo(handle, index, buffer, 200, ctypes.byref(flags))
    return buffer.value.decode("utf-8", "replace")


def reads_like_text(letters: str) -> bool:
    """Whether numbers of glyphs are ASCII after all: mostly small letters, with a language's share of vowels."""
    small = len(_LOWER.findall(letters))
    vowels = len(_VOWEL.findall(letters))
    return small >= 30 and small > 0.6 * len(letters) and 0.25 < vowels / small < 0.55


def _fonts(resources: Any, depth: int, seen: list[Any]) -> Iterator[Any]:
    """Dictionaries of fonts in resources, and in those of forms within."""
    from pypdf.generic import DictionaryObject

    resources = resources.get_object() if resources is not None else {}
    if depth > 8 or len(seen) > 200 or any(resources is other for other in seen):
        return
    seen.append(resources)
    fonts = resources.get("/Font", DictionaryObject()).get_object()
    for name in fonts:
        yield fonts[name].get_object()
    forms = resources.get("/XObject", DictionaryObject()).get_object()
    for name in forms:
        form = forms[name].get_object()
        if form.get("/Subtype") == "/Form" and "/Resources" in form:
            yield from _fonts(form["/Resources"], depth + 1, seen)


def _differences(font: Any) -> dict[int, str]:
    encoding = font.get("/Encoding")
    encoding = encoding.get_object() if encoding is not None else {}
    found: dict[int, str] = {}
    code = 0
    for item in encoding.get("/Differences", []) if hasattr(encoding, "get") else []:
        item = item.get_object()
        if isinstance(item, int):
            code = int(item)
        else:
            found[code] = unicode_of(str(item).lstrip("/"))
            code += 1
    return found


def unicode_of(name: str) -> str:
    """What the name of a glyph stands for; empty if it is a number of the font's own."""
    from pypdf._codecs import adobe_glyphs

    if letter := _TEX.get(name) or adobe_glyphs.get("/" + name) or _TEX.get(_SIZE.sub("", name)):
        return letter
    if match := re.fullmatch(r"uni([0-9A-F]{4})|u([0-9A-F]{4,6})", name):
        value = int(match[1] or match[2], 16)
        return chr(value) if value < 0x110000 and not 0xD800 <= value < 0xE000 else ""
    plain = _SIZE.sub("", name.split(".")[0])
    return str(adobe_glyphs.get("/" + plain, "")) if plain != name else ""
