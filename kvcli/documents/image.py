"""Pictures of pages: PNG, JPEG, TIFF, GIF and WebP, read by OCR if ``--ocr`` allows it."""

from kvcli.documents.document import Extract, Part, Source
from kvcli.documents.pages import mark, select
from kvcli.documents.pdf import ocr
from kvcli.errors import InputError


def extract(source: Source) -> Extract:
    """The text on a picture, or on each page of a TIFF. Raises ``InputError`` if there is none."""
    texts = ocr.pages(source, [])
    if not texts:
        raise InputError(f"{source.name} is damaged: it cannot be opened as a picture", "fetch the file again")
    if not any(texts.values()):
        raise InputError(f"{source.name}: OCR found no text on it", "scan it with more dots per inch")
    found = Extract([], pages=len(texts), notes=[f"{source.name} was read by OCR"])
    for number in select(source.options.pages, len(texts), source.name):
        above = f"{mark(number)}\n" if len(texts) > 1 else ""
        found.parts.append(Part(f"{above}{texts[number]}\n\n", len(above), number))
    found.pages = len(found.parts)
    return found
