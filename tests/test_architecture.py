"""The rules of the layout that a machine can check: one-way imports, short functions, documented names, a test each."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "src" / "unicl"
ORDER = (
    "errors",
    "config",
    "space",
    "data",
    "towers",
    "similarity",
    "objective",
    "model",
    "compare",
    "train",
    "evaluate",
    "use",
    "recipes",
    "published",
    "lookup",
    "dials",
    "before",
    "prepare",
    "run",
    "exports",
    "finetune",
    "demo",
    "cli",
    "__main__",
)
MODULES = sorted(p for p in SOURCE.rglob("*.py") if p.name != "__init__.py")
NAMES = [str(p.relative_to(SOURCE)) for p in MODULES]
FUNCTION = ast.FunctionDef | ast.AsyncFunctionDef
NESTING = ast.For | ast.While | ast.If | ast.With | ast.Try | ast.Match


def parsed(path):
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree):
    return [node for node in ast.walk(tree) if isinstance(node, FUNCTION)]


def body_length(node):
    body = node.body[1:] if ast.get_docstring(node) is not None else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def depth(node, level=0):
    """How deep the blocks of a function are nested; an elif is no deeper than its if."""
    deepest = level
    for field in ("body", "orelse", "finalbody", "handlers", "cases"):
        for child in getattr(node, field, []):
            inside = level
            if isinstance(child, NESTING) and not (field == "orelse" and isinstance(node, ast.If)):
                inside += 1
            if not isinstance(child, FUNCTION | ast.ClassDef):
                deepest = max(deepest, depth(child, inside))
    return deepest


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_imports_go_one_way(path):
    own = ORDER.index(path.relative_to(SOURCE).parts[0].removesuffix(".py"))
    for node in ast.walk(parsed(path)):
        module = node.module if isinstance(node, ast.ImportFrom) else None
        if module and module.startswith("unicl."):
            room = module.split(".")[1]
            assert ORDER.index(room) <= own, f"{path.name} line {node.lineno} imports {module}, which stands after it"


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_modules_and_functions_fit_on_a_screen(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400
    for node in functions(parsed(path)):
        assert body_length(node) <= 50, f"{node.name} has {body_length(node)} lines"
        assert depth(node) <= 3, f"{node.name} is nested {depth(node)} deep"


def test_nine_functions_of_ten_have_at_most_25_lines():
    lengths = sorted(body_length(node) for path in MODULES for node in functions(parsed(path)))
    assert lengths[int(0.9 * (len(lengths) - 1))] <= 25


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_public_names_are_documented_and_take_two_positional_arguments_at_most(path):
    tree = parsed(path)
    assert ast.get_docstring(tree), "the module has no docstring"
    for node in tree.body:
        if isinstance(node, FUNCTION | ast.ClassDef) and not node.name.startswith("_"):
            assert ast.get_docstring(node), f"{node.name} has no docstring"
        if isinstance(node, FUNCTION) and not node.name.startswith("_"):
            positional = len(node.args.args) + len(node.args.posonlyargs)
            assert positional <= 3, f"{node.name} takes {positional} positional arguments"


@pytest.mark.parametrize("path", [p for p in MODULES if p.name != "__main__.py"], ids=lambda p: p.stem)
def test_every_module_has_its_test_file(path):
    inside = path.relative_to(SOURCE)
    wanted = ROOT / "tests" / inside.parent / f"test_{path.name}"
    assert wanted.is_file(), f"no {wanted.relative_to(ROOT)}"


def test_help_and_import_do_not_load_torch():
    import subprocess
    import sys

    code = "import sys, unicl, unicl.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_no_function_asks_for_the_name_of_a_system():
    systems = {"clip", "unicl", "itl", "siglip", "supcon", "cross_entropy", "florence"}
    for path in MODULES:
        if path.relative_to(SOURCE).parts[0] in ("demo", "lookup.py", "cli", "towers", "data"):
            continue
        for node in ast.walk(parsed(path)):
            if isinstance(node, ast.Compare):
                compared = {c.value for c in ast.walk(node) if isinstance(c, ast.Constant)}
                assert not compared & systems, f"{path.name} line {node.lineno} branches on {compared & systems}"
