"""The wording of errors, notes and commands, in one file: ``cli/golden/messages.txt``.

``make golden`` writes the file anew; the diff shows what people will read. Other tests assert codes and numbers only.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

FILE = Path(__file__).parent / "cli" / "golden" / "messages.txt"
UPDATE = bool(os.environ.get("KVCLI_UPDATE_GOLDEN"))
_HEADING = "== "
_CHANGING = (
    (r"\b[0-9a-f]{10,}\b", "ID"),
    (r"\bb?float(16|32)\b", "DTYPE"),
    (r"[+-]?\d[\d,.:]*(?<=\d)", "#"),
    (r"\b[KMG]?i?B\b", "B"),
    (r"# s\b", "#"),
    (r"just now|# minutes? ago", "AGO"),
    (r"\S+/chats/", "CHATS/"),
    (r"[▁▂▃▄▅▆▇█][ ▁▂▃▄▅▆▇█]{20,}", "BARS"),
    (r" {3,}", "  "),
)


def load() -> dict[str, str]:
    """The text of each section of the file."""
    sections = {}
    for part in FILE.read_text("utf-8").split(f"\n{_HEADING}") if FILE.exists() else ():
        name, _, text = part.removeprefix(_HEADING).partition("\n")
        sections[name] = text.strip("\n")
    return sections


def check(name: str, text: str, *, hide: dict[str, str] | None = None, numbers: bool = True) -> None:
    """Compare ``text`` with section ``name``, or write it there if the file is made anew.

    Args:
        hide: what differs between machines, and the word for it.
        numbers: whether numbers, units, dtypes, ids and column widths are compared.
    """
    name = name.strip()
    for found, word in (hide or {}).items():
        text = text.replace(found, word)
    if not numbers:
        for pattern, word in _CHANGING:
            text = re.sub(pattern, word, text)
    text = "\n".join(line.rstrip() for line in text.strip("\n").splitlines())
    sections = load()
    if UPDATE:
        sections[name] = text
        parts = [f"{_HEADING}{key}\n{value}" for key, value in sorted(sections.items())]
        FILE.write_text("\n\n".join(parts) + "\n", "utf-8")
    else:
        assert text == sections.get(name), f"{name}: the wording changed; if it should, run: make golden"
