"""RTF, by the library striprtf: the text with its tables, without pictures."""

import re

from kvcli.documents.document import Extract, Part, Source
from kvcli.errors import InputError


def extract(source: Source) -> Extract:
    """The text. Raises ``InputError`` for damage."""
    from striprtf.striprtf import rtf_to_text

    try:
        text: str = rtf_to_text(source.data.decode("latin-1"), errors="replace")
    except (ValueError, LookupError, IndexError, AttributeError, TypeError) as error:
        why = f"{source.name} is damaged: {error}"
        raise InputError(why[:200], "fetch the file again, or save it anew") from None
    lines = (re.sub(r"\|$", "", line.rstrip()).replace("|", " | ") for line in text.split("\n"))
    text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n") + "\n"
    pictures = source.data.count(b"{\\pict")
    notes = [f"{source.name}: not read: {pictures:,} picture{'' if pictures == 1 else 's'}"] if pictures else []
    return Extract([Part(text)] if text.strip() else [], notes=notes)
