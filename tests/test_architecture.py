"""The house rules that a machine can check: imports, sizes, docstrings, words that may not occur."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCE = ROOT / "src" / "quire"
FILES = sorted(SOURCE.rglob("*.py"))
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in FILES}


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


def roots(path: pathlib.Path) -> set[str]:
    return {name.split(".")[0] for name in imported(TREES[path])}


def rooms(*names: str) -> list[pathlib.Path]:
    return [path for path in FILES if path.relative_to(SOURCE).parts[0] in names]


def test_walls():
    done = subprocess.run(
        [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_sizes():
    done = subprocess.run([sys.executable, "scripts/size"], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_forbidden_things(path):
    roots_of_file = roots(path)
    assert not roots_of_file & {"pickle", "cloudpickle", "dill", "marshal", "transformers"}
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            assert name not in ("eval", "exec", "compile", "__import__"), f"{name} at line {node.lineno}"
            if name == "torch.load":
                assert path.name == "legacy.py" and "weights_only=True" in ast.unparse(node)
        if isinstance(node, ast.ExceptHandler) and (node.type is None or ast.unparse(node.type) == "Exception"):
            assert not all(isinstance(s, ast.Pass) for s in node.body), f"swallowed at line {node.lineno}"


def test_only_one_room_knows_each_thing():
    allowed = {
        "triton": "ops/triton",
        "ray": "distributed",
        "sentencepiece": "tokenizer",
        "tokenizers": "tokenizer",
        "jinja2": "tokenizer",
        "huggingface_hub": "weights",
        "starlette": "server",
        "uvicorn": "server",
        "uvloop": "server",
        "httptools": "server",
        "prometheus_client": "server",
        "llguidance": "sampling/grammar",
        "matplotlib": "cli/load",
    }
    for path in FILES:
        for package in roots(path) & set(allowed):
            assert str(path.relative_to(SOURCE)).startswith(allowed[package]), f"{path} imports {package}"
        if any(name.startswith(("torch.distributed", "torch._C._distributed")) for name in imported(TREES[path])):
            assert path.relative_to(SOURCE).parts[0] == "distributed"
        if path != SOURCE / "core" / "env.py":
            assert "os.environ" not in path.read_text(encoding="utf-8") or path.name == "env.py", path


def test_rooms_without_tensors():
    for path in rooms("core", "kv_cache", "scheduler", "tokenizer", "engine", "server", "cli"):
        assert not roots(path) & {"torch", "numpy"}, path


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(SOURCE)))
def test_docstrings(path):
    tree = TREES[path]
    assert ast.get_docstring(tree), "a module without a docstring"
    public = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)
    for parent in ast.walk(tree):
        if isinstance(parent, (ast.Module, ast.ClassDef)):
            if isinstance(parent, ast.ClassDef) and parent.name.startswith("_"):
                continue
            for node in parent.body:
                if isinstance(node, public) and not node.name.startswith("_"):
                    assert ast.get_docstring(node), f"{node.name} at line {node.lineno} has no docstring"


def test_every_dependency_is_used_and_every_import_declared():
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    declared = text.partition("dependencies = [")[2].partition("]\n")[0]
    for extra in ("gpu", "otel", "ray", "bench"):
        declared += text.partition(f"\n{extra} = [")[2].partition("]\n")[0]
    names = {line.strip().strip('"').split(">")[0].split("[")[0] for line in declared.splitlines() if '"' in line}
    names = {name.partition("-")[0] for name in names}  # opentelemetry-sdk is a part of opentelemetry
    used = set().union(*(roots(path) for path in FILES)) - set(sys.stdlib_module_names) - {"quire"}
    assert used <= {name.lower() for name in names}, "imported but not declared"
    assert {name.lower() for name in names} <= used, "declared but not used"
