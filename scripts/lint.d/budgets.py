"""Files, functions and folders stay small enough to be read at once. Exceptions are named in exceptions.txt."""

import ast
from collections.abc import Iterator
from pathlib import Path

from cpp import Function, functions
from tree import CPP, finish, text_of, tracked

SOURCE_LINES = 400
TEST_LINES = 600
HEADER_LINES = 250
FUNCTION_LINES = 60
FOLDER_DEPTH = 3
SOURCES = (*CPP, ".py", ".proto", ".cmake", "CMakeLists.txt")
EXCEPTIONS = Path("scripts/lint.d/exceptions.txt")


def read_exceptions() -> dict[str, int]:
    limits: dict[str, int] = {}
    for line in text_of(str(EXCEPTIONS)).splitlines():
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split(maxsplit=3)
        if len(words) != 4 or words[0] not in ("file", "folder", "function") or not words[2].isdigit():
            finish([f"{EXCEPTIONS}: not `kind what limit reason`: {line}"])
        limits[f"{words[0]} {words[1]}"] = int(words[2])
    return limits


def is_script(name: str) -> bool:
    return "." not in Path(name).name and text_of(name).startswith("#!")


def line_limit(name: str) -> int:
    if name.startswith("test/"):
        return TEST_LINES
    return HEADER_LINES if name.endswith(".h") else SOURCE_LINES


def python_functions(text: str) -> Iterator[Function]:
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield Function(node.name, node.lineno, node.end_lineno or node.lineno)


def functions_of(name: str) -> list[Function]:
    if name.endswith(CPP):
        return functions(text_of(name))
    return list(python_functions(text_of(name))) if name.endswith(".py") else []


def problems() -> Iterator[str]:
    exceptions = read_exceptions()
    needed = set()

    def limit(key: str, ordinary: int, lines: int) -> int:
        if key in exceptions and lines > ordinary:
            needed.add(key)
            return exceptions[key]
        return ordinary

    for name in tracked():
        if not name.endswith(SOURCES) and not is_script(name):
            continue
        folders = len(Path(name).parts) - 1
        allowed = limit(f"folder {Path(name).parent}", FOLDER_DEPTH, folders)
        if folders > allowed:
            yield f"{name}: {folders} folders deep, the budget is {allowed}"
        lines = len(text_of(name).splitlines())
        allowed = limit(f"file {name}", line_limit(name), lines)
        if lines > allowed:
            yield f"{name}: {lines} lines, the budget is {allowed}"
        for function in functions_of(name):
            allowed = limit(f"function {name}:{function.name}", FUNCTION_LINES, function.lines)
            if function.lines > allowed:
                place = f"{name}:{function.first_line}: {function.name}"
                yield f"{place} has {function.lines} lines, the budget is {allowed}"
    for key in sorted(exceptions.keys() - needed):
        yield f"{EXCEPTIONS}: nothing needs this exception any more: {key}"


if __name__ == "__main__":
    finish(problems())
