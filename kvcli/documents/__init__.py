"""Documents: files and standard input become one text, whole and in the order they were named.

Nothing here truncates. What cannot be read is refused with an :class:`~kvcli.errors.InputError` that names
the file, the reason and a command that helps; what had to be repaired is said in ``Document.warnings``.
"""

from kvcli.documents.reader import STDIN, Document, read

__all__ = ["STDIN", "Document", "read"]
