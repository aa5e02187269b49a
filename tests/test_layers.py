"""The import table of the architecture, enforced by AST, with planted violations that prove that each rule can fail."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeGuard

import pytest

PACKAGE = Path(__file__).resolve().parents[1] / "hopecli"
MAX_LINES = 300


class Layer(NamedTuple):
    """What one package may import: parts of hopecli (itself and errors always), third party anywhere, and third party
    inside functions only. `top`: the parts of hopecli allowed at module level, None = the same as `hopecli`."""

    hopecli: tuple[str, ...] = ()
    third_party: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    top: tuple[str, ...] | None = None


LAYERS: dict[str, Layer] = {
    "errors": Layer(),
    "hardware": Layer(inside=("torch",)),
    "config": Layer(third_party=("pydantic", "yaml")),
    "data": Layer(("config.schema",), ("numpy", "torch")),
    "models": Layer(("config.schema",), ("torch",)),
    "objectives": Layer(("data.clip", "models.protocol"), ("torch",)),
    "engine": Layer(
        ("hardware", "config", "data", "models", "objectives"), ("torch", "accelerate", "numpy", "safetensors")
    ),
    "report": Layer(
        (
            "engine.results",
            "engine.sink",
            "engine.tta_results",
            "data.survey",
            "hardware",
            "config.explain",
        ),
        ("rich", "numpy"),
        ("matplotlib", "wandb"),
    ),
    "cli": Layer(
        ("hardware", "config", "data", "models", "objectives", "engine", "report"),
        ("typer",),
        ("torch", "numpy", "dotenv"),
        top=("config",),
    ),
    "__main__": Layer(("cli",)),
}
# The one file of models that sees settings; layers themselves take plain arguments.
SETTINGS_IN_MODELS = "models/build.py"


class Import(NamedTuple):
    """One imported name in full (`package.module.name`), its line, and whether importing the file runs it."""

    name: str
    line: int
    top: bool


def imports(tree: ast.Module) -> Iterator[Import]:
    """Every import of a module; those in functions and under `if TYPE_CHECKING` are not `top`."""

    def walk(node: ast.AST, top: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, top) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                source = "." * child.level + (child.module or "")
                yield from (Import(f"{source}.{alias.name}", child.lineno, top) for alias in child.names)
            else:
                function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                typing = isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING")
                yield from walk(child, top and not function and not typing)

    yield from walk(tree, True)


def within(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a dotted name is one of `parts` or lies in it."""
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def import_problems(file: str, found: Import) -> Iterator[str]:
    """Broken rules of one import in `file` (relative to the package folder)."""
    first, _, rest = found.name.partition(".")
    package = file.split("/")[0].removesuffix(".py")
    if package == "__init__":
        layer = Layer()
    elif package in LAYERS:
        layer = LAYERS[package]
    else:
        yield "is not in the table of layers"
        return
    if first == "":
        yield "relative import"
    elif first == "click":
        yield "click is typer's business"
    elif first == "hopecli":
        own = (package, "errors", "__version__")
        if not within(rest, (*layer.hopecli, *own)):
            yield f"{package} may not import hopecli.{rest}"
        elif found.top and layer.top is not None and not within(rest, (*layer.top, *own)):
            yield f"{package} may import hopecli.{rest} inside functions only"
        if package == "models" and within(rest, ("config",)) and file != SETTINGS_IN_MODELS:
            yield f"only {SETTINGS_IN_MODELS} may import settings"
    elif first not in sys.stdlib_module_names and first not in layer.third_party:
        if first not in layer.inside:
            yield f"{package} may not import {first}"
        elif found.top:
            yield f"{package} may import {first} inside functions only"


def _of_a_path(function: ast.expr) -> TypeGuard[ast.Attribute]:
    """Whether it is a method of Path that errors.py replaces; a directory entry has one of the same name."""
    if not isinstance(function, ast.Attribute) or function.attr not in ("exists", "is_dir", "is_file"):
        return False
    return not (isinstance(function.value, ast.Name) and function.value.id == "entry")


def problems(root: Path) -> list[str]:
    """Every broken rule of a package folder as `file:line: rule`."""
    out = []
    for path in sorted(root.rglob("*.py")):
        file = path.relative_to(root).as_posix()
        text = path.read_text(encoding="utf-8")
        tree = ast.parse(text)
        lines = len(text.splitlines())
        if lines > MAX_LINES:
            out.append(f"{file}:{lines}: more than {MAX_LINES} lines")
        for found in imports(tree):
            out += [f"{file}:{found.line}: {problem}" for problem in import_problems(file, found)]
        for node in ast.walk(tree):
            if isinstance(node, ast.arguments) and node.kwarg is not None:
                out.append(f"{file}:{node.kwarg.lineno}: **{node.kwarg.arg} swallows arguments")
            if isinstance(node, ast.Call) and not node.args and _of_a_path(node.func):
                out.append(f"{file}:{node.lineno}: Path.{node.func.attr} of Python 3.14 hides errors: see errors.py")
    return out


def test_package_keeps_the_rules() -> None:
    assert problems(PACKAGE) == []


def test_tests_are_as_short_as_the_package() -> None:
    files = sorted(Path(__file__).resolve().parent.rglob("*.py"))
    assert len(files) > 90
    lines = {file.name: len(file.read_text(encoding="utf-8").splitlines()) for file in files}
    assert {name: count for name, count in lines.items() if count > MAX_LINES} == {}


PLANTED = {
    "config may not import torch": ("config/load.py", "import torch"),
    "config may not import hopecli.data": ("config/load.py", "def f():\n    from hopecli.data import clip"),
    "data may not import yaml": ("data/store.py", "import yaml"),
    "data may not import hopecli.config.load": ("data/store.py", "from hopecli.config import load"),
    "data may not import hopecli.models": ("data/store.py", "from hopecli.models.protocol import Predictor"),
    "models may not import hopecli.data": ("models/vit_ac.py", "import hopecli.data.clip"),
    "only models/build.py may import settings": ("models/rope.py", "from hopecli.config.schema import Settings"),
    "objectives may not import hopecli.data.store": (
        "objectives/losses.py",
        "from hopecli.data.store import ClipStore",
    ),
    "objectives may not import hopecli.models.vit_ac": ("objectives/losses.py", "from hopecli.models import vit_ac"),
    "engine may not import hopecli.report": ("engine/train.py", "def f():\n    from hopecli.report import console"),
    "engine may not import hopecli.cli": ("engine/train.py", "import hopecli.cli.main"),
    "engine may not import rich": ("engine/train.py", "from rich.table import Table"),
    "engine may not import wandb": ("engine/sink.py", "def f():\n    import wandb"),
    "models may not import accelerate": ("models/vit_ac.py", "from accelerate import Accelerator"),
    "report may not import hopecli.engine.train": ("report/tables.py", "from hopecli.engine.train import train"),
    "report may not import torch": ("report/tables.py", "def f():\n    import torch"),
    "report may import wandb inside functions only": ("report/wandb.py", "import wandb"),
    "report may not import typer": ("report/tables.py", "import typer"),
    "cli may import torch inside functions only": ("cli/main.py", "if True:\n    import torch"),
    "cli may import hopecli.engine": ("cli/train.py", "from hopecli.engine.train import train"),
    "cli may not import rich": ("cli/train.py", "def f():\n    import rich"),
    "hardware may import torch inside functions only": ("hardware.py", "import torch"),
    "errors may not import hopecli.config": ("errors.py", "import hopecli.config.schema"),
    "click is typer's business": ("cli/main.py", "def f():\n    import click"),
    "relative import": ("data/store.py", "from . import clip"),
    "is not in the table of layers": ("utils/misc.py", "import os"),
    "**options swallows arguments": ("data/store.py", "def f(**options): ..."),
    "Path.is_file of Python 3.14 hides errors": (
        "data/store.py",
        "def f(folder):\n    return (folder / 'x').is_file()",
    ),
    "more than 300 lines": ("data/store.py", "\n" * 301),
}


@pytest.mark.parametrize("rule", PLANTED)
def test_planted_violation_is_caught(rule: str, tmp_path: Path) -> None:
    file, text = PLANTED[rule]
    path = tmp_path / file
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    found = problems(tmp_path)
    assert len(found) == 1
    assert found[0].startswith(f"{file}:")
    assert rule in found[0]


def test_allowed_imports_are_not_reported(tmp_path: Path) -> None:
    (tmp_path / "cli").mkdir()
    (tmp_path / "cli" / "train.py").write_text(
        "from typing import TYPE_CHECKING\nimport typer\nfrom hopecli.config.load import load_preset\n"
        "if TYPE_CHECKING:\n    import torch\n"
        "def f():\n    import torch\n    from hopecli.engine.train import train\n",
        encoding="utf-8",
    )
    assert problems(tmp_path) == []


@pytest.mark.parametrize("module", ["hopecli.cli.main", "hopecli.config.load", "hopecli.hardware"])
def test_importing_leaves_torch_unloaded(module: str) -> None:
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
