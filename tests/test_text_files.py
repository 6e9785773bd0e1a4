"""Text is read and written as UTF-8 whatever the locale: every call that opens a file as text names the encoding."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[1]
FILES = sorted(
    path for folder in ("expertflow_jax", "eval", "train", "configs") for path in (ROOT / folder).rglob("*.py")
)
NO_TEXT = {"os", "Image", "tarfile", "zipfile", "webbrowser"}  # modules whose `open` is another


def without_encoding(source: str) -> list[int]:
    """Lines of calls that open text files in the encoding of the locale."""
    lines = []
    for call in (node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Call)):
        method = isinstance(call.func, ast.Attribute)
        name = call.func.attr if method else getattr(call.func, "id", "")
        owner = call.func.value.id if method and isinstance(call.func.value, ast.Name) else ""
        if owner in NO_TEXT or name not in ("open", "read_text", "write_text"):
            continue
        keywords = {keyword.arg: keyword.value for keyword in call.keywords}
        given = call.args[0 if method else 1 :]
        mode = keywords.get("mode", given[0] if name == "open" and given else None)
        binary = isinstance(mode, ast.Constant) and "b" in str(mode.value)
        if not binary and "encoding" not in keywords:
            lines.append(call.lineno)
    return lines


def test_calls_without_an_encoding_are_seen():
    source = (
        'open("a")\nopen("a", "rb")\nPath("a").open("w")\nPath("a").read_text(encoding="utf-8")\np.write_text("x")\n'
    )
    assert without_encoding(source) == [1, 3, 5]


def test_every_text_file_names_its_encoding():
    lines = {str(path.relative_to(ROOT)): without_encoding(path.read_text(encoding="utf-8")) for path in FILES}
    assert {path: numbers for path, numbers in lines.items() if numbers} == {}
