"""A table as an .xlsx file, through openpyxl (the extra `xlsx`)."""

import importlib.util
import io
from collections.abc import Mapping, Sequence
from typing import Any

INSTALL = "pip install 'expertflow-jax[xlsx]'"


def is_available() -> bool:
    """Whether openpyxl is installed."""
    return importlib.util.find_spec("openpyxl") is not None


def xlsx(table: Sequence[Mapping[str, Any]]) -> tuple[str, bytes] | None:
    """(ending, content) of a sheet with a header; None where openpyxl is not installed.

    Texts stay texts, those that begin with "=" too; characters that a sheet cannot hold are left out.
    """
    if not is_available():
        return None
    from openpyxl import Workbook
    from openpyxl.cell import WriteOnlyCell
    from openpyxl.cell.cell import ILLEGAL_CHARACTERS_RE

    book = Workbook(write_only=True)
    sheet = book.create_sheet()

    def cell(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        written = WriteOnlyCell(sheet, ILLEGAL_CHARACTERS_RE.sub("", value))
        written.data_type = "s"
        return written

    columns = list(table[0]) if table else []
    sheet.append(columns)
    for row in table:
        sheet.append([cell(row[name]) for name in columns])
    content = io.BytesIO()
    book.save(content)
    return "xlsx", content.getvalue()
