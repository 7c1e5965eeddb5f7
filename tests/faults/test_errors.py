"""docs/errors.md lists every error line of the code, and no other.

The lines are read from the source: each `raise XError(text)` and each `require(...)`, with `…` for
what is only known when it happens. Where the two differ, the failure prints the rows to add or to
take out; what a person should do is written by hand.
"""

import ast
import re
from itertools import product
from pathlib import Path

import pytest

import checkpoint
import cli
import data
import run
import train

ROOT = Path(__file__).parent.parent.parent
SOURCES = sorted([*ROOT.glob("*.py"), *ROOT.glob("data/*.py"), ROOT / "configs/__init__.py"])
DOC = ROOT / "docs" / "errors.md"
SAID = {"Ctrl-C": 130, "SIGTERM": 143, "another process": 1}  # by cli.sentence; others end with 6
SILENT = {"KeyboardInterrupt", "Terminated", "BadZipFile", "PermissionError"}  # without a line
INSIDE = {  # raised and caught in the same file: nobody reads them
    "configs/__init__.py": {"not a literal", "not a number", "too large"},
}
Row = tuple[str, str, int]  # file, line, exit code


def exit_codes() -> dict[str, int]:
    """The exit code of every kind of error: that of the classes which have one, and of Python's."""
    found = {"ValueError": cli.USAGE, "OSError": cli.RESOURCES}
    nodes = [n for path in SOURCES for n in ast.walk(ast.parse(path.read_text()))]
    for node in (n for n in nodes if isinstance(n, ast.ClassDef) and n.name.endswith("Error")):
        own = [line.value for line in node.body if ast.unparse(line).startswith("exit_code = ")]
        code = (
            ast.unparse(own[0]).removeprefix("cli.") if own else found[ast.unparse(node.bases[0])]
        )
        found[node.name] = getattr(cli, str(code), None) or int(code)
    return found


CODES = exit_codes()


class Texts:
    """What the string expressions of one function can say."""

    def __init__(self, module: ast.Module, function: ast.FunctionDef):
        self.known: dict[str, list[ast.expr]] = {}
        for node in [*module.body, *ast.walk(function)]:
            for target in node.targets if isinstance(node, ast.Assign) else ():
                if node in function.body:  # it stands in no branch, so that it alone holds
                    self.known.pop(getattr(target, "id", ""), None)
                self._learn(target, node.value)

    def _learn(self, target: ast.expr, value: ast.expr) -> None:
        if isinstance(target, ast.Name):
            self.known.setdefault(target.id, []).append(value)
        elif isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
            for name, part in zip(target.elts, value.elts, strict=True):
                self._learn(name, part)

    def of(self, node: ast.expr, seen: frozenset = frozenset()) -> list[str]:
        """Every text that an expression can be, `…` for what cannot be told."""
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return [node.value]
        if isinstance(node, ast.FormattedValue):
            return self.of(node.value, seen) if node.conversion == -1 else ["…"]
        if isinstance(node, ast.JoinedStr):
            return ["".join(way) for way in product(*(self.of(v, seen) for v in node.values))]
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
            both = product(self.of(node.left, seen), self.of(node.right, seen))
            return [a + b for a, b in both]
        if isinstance(node, ast.IfExp):
            return self.of(node.body, seen) + self.of(node.orelse, seen)
        if isinstance(node, ast.Name) and node.id in self.known.keys() - seen:
            return [t for v in self.known[node.id] for t in self.of(v, seen | {node.id})]
        return ["…"]


def errors(path: Path) -> set[Row]:
    """Every error line of one file."""
    module, file = ast.parse(path.read_text()), str(path.relative_to(ROOT))
    found = set()
    for function in (n for n in ast.walk(module) if isinstance(n, ast.FunctionDef)):
        for node in ast.walk(function):
            # As much of the function as stands above: what a name means there.
            texts = Texts(module, above(function, getattr(node, "lineno", 0)))
            found |= {(file, tidy(line), code) for line, code in lines(node, texts)}
            if (file, function.name) == ("cli.py", "sentence") and isinstance(node, ast.Return):
                said = {tidy(text) for text in texts.of(node.value)}
                codes = [(t, [code for words, code in SAID.items() if words in t]) for t in said]
                found |= {(file, t, (code or [cli.RESOURCES])[0]) for t, code in codes}
    again = {"", "…", "… (…)"}  # another error's line, passed on
    return {row for row in found if row[1] not in INSIDE.get(file, set()) | again}


def above(function: ast.FunctionDef, line: int) -> ast.FunctionDef:
    body = [node for node in function.body if node.lineno <= line]
    return ast.FunctionDef(function.name, function.args, body, [], lineno=function.lineno)


def lines(node: ast.AST, texts: Texts) -> list[tuple[str, int]]:
    """The error lines, with their exit codes, that one statement can print."""
    if isinstance(node, ast.Call) and ast.unparse(node.func) == "require":
        _, _, name, rule = node.args
        rules = texts.of(rule)
        return [(f"{n} is …; it must be {r}", cli.USAGE) for n in texts.of(name) for r in rules]
    if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call | ast.Name):
        kind = kind_of(node.exc)
        known = kind in CODES.keys() | SILENT or not kind[0].isupper()
        assert known, f"what exit code has {kind}?"
    if not isinstance(node, ast.Call) or kind_of(node) not in CODES or not node.args:
        return []
    if kind_of(node) == "OSError":  # errno, text, file
        return [(f"…: {text}", cli.RESOURCES) for text in texts.of(node.args[1])]
    return [(text, CODES[kind_of(node)]) for text in texts.of(node.args[0])]


def kind_of(raised: ast.Call | ast.Name) -> str:
    return ast.unparse(raised.func if isinstance(raised, ast.Call) else raised).split(".")[-1]


def tidy(text: str) -> str:
    return re.sub(r"…+", "…", " ".join(text.split()))


def documented() -> dict[Row, str]:
    """The rows of docs/errors.md and what they advise."""
    found, file = {}, ""
    for line in DOC.read_text().splitlines():
        if line.startswith("## `"):
            file = line[4:-1]
        elif file and line.startswith("| `"):
            text, code, advice = (cell.strip() for cell in line.strip("|").split(" | "))
            fence = 2 if text.startswith("``") else 1
            found[file, text[fence:-fence].strip(), int(code)] = advice
    return found


def row(file: str, text: str, code: int) -> str:
    return f"| `` {text} `` | {code} |" if "`" in text else f"| `{text}` | {code} |"


def test_every_error_line_stands_in_the_document_and_no_other():
    code, written = set().union(*map(errors, SOURCES)), documented()
    report = [f"add under ## `{r[0]}`:\n{row(*r)} ? |" for r in sorted(code - written.keys())]
    report += [f"take out of ## `{r[0]}`:\n{row(*r)}" for r in sorted(written.keys() - code)]
    assert not report, "docs/errors.md and the code differ:\n" + "\n".join(report)


def test_every_line_has_its_advice():
    assert [key for key, advice in documented().items() if len(advice.split()) < 3] == []


SAMPLE = """
LIMIT = "at most 3"

def check(x, y):
    rule = "even"
    require(x % 2 == 0, config, "x", rule)
    rule = f"odd, not {y!r}"
    require(x % 2, config, "x", rule)
    what = "gone" if y else "old"
    if x:
        what = "new"
    try:
        pass
    except OSError:
        raise data.DataError(f"{y} is {what}: " + LIMIT) from None
    error = OtherError(f"{x} is another")
    raise OSError(1, f"cannot use {x}", y)
"""


def test_the_lines_are_read_as_a_person_would(tmp_path, monkeypatch):
    """Names that hold text, branches, joined pieces, and a name that changes its meaning."""
    monkeypatch.setitem(globals(), "ROOT", tmp_path)
    (tmp_path / "sample.py").write_text(SAMPLE)
    monkeypatch.setitem(CODES, "OtherError", cli.BUSY)
    assert {(text, code) for _, text, code in errors(tmp_path / "sample.py")} == {
        ("x is …; it must be even", 2),
        ("x is …; it must be odd, not …", 2),
        ("… is gone: at most 3", 3),
        ("… is old: at most 3", 3),
        ("… is new: at most 3", 3),
        ("…: cannot use …", 6),
        ("… is another", 7),
    }


@pytest.mark.parametrize("kind", ["DataError", "CheckpointError", "DivergedError", "BusyError"])
def test_the_exit_codes_are_those_of_the_code(kind):
    rooms = (checkpoint, data, run, train)
    (error,) = {getattr(room, kind) for room in rooms if hasattr(room, kind)}
    assert cli.exit_code(error("")) == CODES[kind]
