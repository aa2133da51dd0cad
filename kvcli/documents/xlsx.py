"""XLSX: every sheet as a table, a line for each row, with numbers as the sheet shows them."""

import datetime
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from kvcli.documents.archive import Archive
from kvcli.documents.document import Extract, Source
from kvcli.documents.flow import TextBlock, left_out, parts
from kvcli.errors import InputError

_CURRENCY = re.compile(r'\[\$([^\]-]+)[^\]]*\]|"([^"]*)"|([$€£¥])')
_DECIMALS = re.compile(r"0\.(0+)")


def extract(source: Source) -> Extract:
    """The visible sheets of a workbook. Raises ``InputError`` for damage."""
    from openpyxl import load_workbook

    left: Counter[str] = Counter()
    blocks: list[TextBlock] = []
    with Archive(source) as archive, warnings.catch_warnings(action="ignore"):
        try:
            values = load_workbook(BytesIO(source.data), read_only=True, data_only=True)
            formulas = load_workbook(BytesIO(source.data), read_only=True)
            for sheet in values.worksheets:
                if sheet.sheet_state != "visible":
                    left["hidden sheet"] += 1
                    continue
                rows = list(_rows(sheet, formulas[sheet.title], left))
                blocks.append(TextBlock(" ".join(sheet.title.split()), level=1, apart=True))
                blocks += [TextBlock(row, apart=i == 0) for i, row in enumerate(rows)]
            left["chart sheet"] += len(values.chartsheets)
        except (InputError, MemoryError):
            raise
        except Exception as error:  # openpyxl checks little: what it does with a damaged file is anything
            raise archive.damaged(str(error)) from None
        left["drawing"] += sum(name.startswith("xl/drawings/drawing") for name in archive.names)
        left["comment"] += sum(name.startswith(("xl/comments", "xl/threadedComments/")) for name in archive.names)
    if not any(block.level == 0 for block in blocks):
        return Extract([])
    return Extract(parts(blocks), notes=left_out(left, source.name))


def _rows(sheet: Any, formulas: Any, left: Counter[str]) -> Iterator[str]:
    """The rows that have something, as ``a | b``. A formula without a stored result is shown itself."""
    for each in (sheet, formulas):
        each.reset_dimensions()  # those in the file may be wrong, or name a million empty rows
    for row, written in zip(sheet.iter_rows(), formulas.iter_rows(), strict=True):
        texts = []
        for cell, formula in zip(row, written, strict=True):
            text = _text(cell)
            if not text and isinstance(formula.value, str) and formula.value.startswith("="):
                left["result of a formula that was never computed"] += 1
                text = formula.value
            texts.append(text)
        line = " | ".join(texts).rstrip(" |")
        if line:
            yield re.sub(r"  +", " ", line)


def _text(cell: Any) -> str:
    """A value as the sheet shows it, as far as that changes its meaning: percent, currency, decimals, dates."""
    value, form = cell.value, str(cell.number_format or "")
    if value is None:
        return ""
    if isinstance(value, bool):
        return "TRUE" if value else "FALSE"
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(" ", "minutes")
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta):
        return str(value)
    if isinstance(value, int | float):
        return _number(value, form.partition(";")[0])
    return " ".join(str(value).split())


def _number(value: float, form: str) -> str:
    percent = "%" in form
    shown = value * 100 if percent else value
    decimals = _DECIMALS.search(form)
    text = f"{shown:.{len(decimals[1])}f}" if decimals and "E" not in form else f"{shown:.15g}"
    unit = "".join(next(filter(None, found)) for found in _CURRENCY.findall(form) if any(found)).strip()
    before = form.find("0") > form.find(unit[:1]) >= 0 if unit else False
    text = f"{unit}{text}" if before else f"{text} {unit}" if unit else text
    return f"{text} %" if percent else text
