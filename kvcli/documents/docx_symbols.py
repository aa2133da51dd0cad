"""The characters of symbol fonts in a DOCX: ticks of Wingdings, and Greek letters and signs of Symbol."""

import re

_TICKS = {"\uf0fe": "☒", "\uf053": "☒", "\uf078": "☒", "\uf0fc": "✓", "\uf052": "☑", "\uf0a8": "☐", "\uf06f": "☐"}
_LATIN = "ABGDEZHQIKLMNXOPRSTUFCYWabgdezhqiklmnxoprVstufcyw"
_GREEK = dict(zip(_LATIN, "ΑΒΓΔΕΖΗΘΙΚΛΜΝΞΟΠΡΣΤΥΦΧΨΩαβγδεζηθικλμνξοπρςστυφχψω", strict=True))
_SYMBOLS = {
    0xA3: "≤",
    0xA5: "∞",
    0xAE: "→",
    0xB0: "°",
    0xB1: "±",
    0xB3: "≥",
    0xB4: "×",
    0xB7: "·",
    0xB8: "÷",
    0xB9: "≠",
}


def symbol(font: str, code: str) -> str:
    """The character of a font's code, in hexadecimal; U+FFFD if the code is not valid."""
    number = int(code, 16) if re.fullmatch(r"[0-9A-Fa-f]{1,5}", code) else 0xFFFD
    found = chr(number)
    if font == "Symbol" and number >= 0xF000:
        letter = chr(number - 0xF000)
        found = _SYMBOLS.get(number - 0xF000, _GREEK.get(letter, letter))
    return _TICKS.get(found, found)
