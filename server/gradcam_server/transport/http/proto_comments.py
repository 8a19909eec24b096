"""The comments of a .proto file, which describe the same fields of JSON. The wheel has the file."""

import re
from importlib import resources

_FIELD = re.compile(r"(?:[\w.]+\s+){1,2}(\w+)\s*=\s*\d+;")
_VALUE = re.compile(r"(\w+)\s*=\s*\d+;")
_OPENS = re.compile(r"(?:message|enum|oneof|service)\s+(\w+)\s*\{(?!\})")


def read_comments(package: str, file: str) -> dict[str, str]:
    """Returns the comments of messages, fields, enumerations and values.

    Args:
        package: The package that has the file.
        file: Its name.

    Returns:
        Comments by names such as ``Target``, ``Target.class_index`` and ``METHOD_GRAD_CAM``. A
        field of a oneof has the name of its message before its own; values of enumerations have
        none.
    """
    comments: dict[str, str] = {}
    scopes: list[tuple[str, str]] = []
    lines: list[str] = []
    for line in resources.files(package).joinpath(file).read_text("utf-8").splitlines():
        text = line.strip()
        if text.startswith("//"):
            lines.append(text.removeprefix("//").strip())
            continue
        if (opens := _OPENS.match(text)) is not None:
            kind = text.split()[0]
            if kind != "oneof":
                comments[opens[1]] = " ".join(lines)
            scopes.append((kind, opens[1]))
        elif text.startswith("}"):
            scopes.pop()
        elif scopes and (name := _name(text, scopes)):
            comments[name] = " ".join(lines)
        lines = []
    return comments


def _name(text: str, scopes: list[tuple[str, str]]) -> str:
    if scopes[-1][0] == "enum":
        found = _VALUE.match(text)
        return found[1] if found else ""
    found = _FIELD.match(text)
    message = next((name for kind, name in reversed(scopes) if kind == "message"), "")
    return f"{message}.{found[1]}" if found and message else ""
