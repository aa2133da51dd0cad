"""Documents: files, directories and standard input become one text, whole and in the order they were named.

One reader per format: :mod:`pdf`, :mod:`epub`, :mod:`docx`, :mod:`html`, :mod:`plain`, and :mod:`image` with OCR.
Each gives parts of a text that know their page, section and line; ``Document.spans`` keep that over the joined text.

Nothing here truncates. What cannot be read is refused with an :class:`~kvcli.errors.InputError` that names
the file, the reason and a command that helps. ``Document.warnings`` say what had to be repaired.
"""

from kvcli.documents.document import Document, Options, Span
from kvcli.documents.reader import STDIN, read

__all__ = ["STDIN", "Document", "Options", "Span", "read"]
