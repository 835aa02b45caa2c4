"""A lexical view of C++ that suffices for budgets: functions with their first and last line.

Comments, strings, character constants and preprocessor lines are blanked out first. At the level of namespaces and
classes a brace opens a function when what stands between it and the statement before has a parameter list; inside a
function nothing is looked at but the balance of braces (a lambda counts towards the function around it).
"""

import re
from dataclasses import dataclass

BLANKED = re.compile(
    r"""//[^\n]*
      | /\*.*?\*/
      | R"(?P<mark>[^\s()\\]{0,16})\(.*?\)(?P=mark)"
      | "(?:\\.|[^"\\\n])*"
      | (?<![0-9a-fA-F])'(?:\\.|[^'\\\n])+'
      | ^[ \t]*\#(?:\\\n|[^\n])*
    """,
    re.VERBOSE | re.DOTALL | re.MULTILINE,
)
SCOPE = re.compile(r"^\s*(?:inline\s+)?namespace\b|^\s*extern\s*$")
TYPE = re.compile(r"\b(?:class|struct|union|enum)\b")
TYPE_FIRST = re.compile(r"^(?:\s*(?:public|private|protected)\s*:)*\s*(?:class|struct|union|enum)\b")
MEMBER_INITIALIZER = re.compile(r"\)[^()]*(?<!:):(?!:)(?:.*[,\s])?\s*[A-Za-z_][\w:]*(?:<[^{}]*>)?\s*$", re.DOTALL)
LEADING = re.compile(r"^(?:\s*(?:public|private|protected)\s*:(?!:))*\s*")
FUNCTION_NAME = re.compile(r"(operator\s*\S+?|~?[A-Za-z_][\w:~]*)\s*\(")


@dataclass(frozen=True)
class Function:
    name: str
    first_line: int
    last_line: int

    @property
    def lines(self) -> int:
        return self.last_line - self.first_line + 1


def blank(text: str) -> str:
    """The text with all that is not code replaced by spaces; lines stay where they are."""
    return BLANKED.sub(lambda found: re.sub(r"[^\n]", " ", found.group(0)), text)


def matching_brace(code: str, opening: int) -> int:
    depth = 0
    for at in range(opening, len(code)):
        if code[at] == "{":
            depth += 1
        elif code[at] == "}":
            depth -= 1
            if depth == 0:
                return at
    return len(code) - 1


def without_template_head(head: str) -> str:
    """`template <class T> struct X` without `template <class T>`, whose `class` opens nothing."""
    found = re.match(r"\s*template\s*<", head)
    if not found:
        return head
    depth = 1
    for at in range(found.end(), len(head)):
        depth += {"<": 1, ">": -1}.get(head[at], 0)
        if depth == 0:
            return without_template_head(head[at + 1 :])
    return head


def is_function(head: str) -> bool:
    """Whether a brace after `head`, at the level of a namespace or class, opens the body of a function."""
    parameters = head.find("(")
    if parameters < 0:
        return False
    before = re.sub(r"\boperator\s*[^\s\w(]+", "operator", head[:parameters])
    return "=" not in before


def functions(text: str) -> list[Function]:
    code = blank(text)
    found: list[Function] = []
    start = 0  # of the statement that is being read
    at = 0
    while at < len(code):
        char = code[at]
        if char in ";}":
            start = at + 1
        elif char == "{":
            head = without_template_head(code[start:at])
            if SCOPE.search(head) or TYPE_FIRST.search(head) or (TYPE.search(head) and not is_function(head)):
                start = at + 1
            else:
                end = matching_brace(code, at)
                if is_function(head) and not MEMBER_INITIALIZER.search(head):
                    found.append(_function(code, start, end, head))
                    start = end + 1
                at = end
        at += 1
    return found


def _function(code: str, start: int, end: int, head: str) -> Function:
    # Access labels and blank lines before the signature are not part of it.
    first = start + len(LEADING.match(code[start:end]).group(0))
    name = FUNCTION_NAME.search(LEADING.sub("", head))
    return Function(name.group(1) if name else "?", code.count("\n", 0, first) + 1, code.count("\n", 0, end) + 1)
