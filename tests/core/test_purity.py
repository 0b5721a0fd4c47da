"""llkd/core needs no framework and no files; tests/test_layout.py checks its imports of llkd."""

import ast
import subprocess
import sys
from pathlib import Path

import llkd.core

FORBIDDEN = {"ray", "torch", "vllm", "transformers", "datasets", "pyarrow"}


def test_core_imports_nothing_forbidden() -> None:
    for path in Path(llkd.core.__path__[0]).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                assert node.func.id != "open", f"{path.name} opens a file"
            for name in names:
                assert name.split(".")[0] not in FORBIDDEN, f"{path.name} imports {name}"


def test_importing_core_loads_no_framework() -> None:
    root = Path(llkd.core.__path__[0])
    paths = [p.relative_to(root).with_suffix("") for p in root.rglob("*.py")]
    modules = [".".join(p.parts) for p in paths if p.name != "__init__"]
    code = "\n".join(
        [*(f"import llkd.core.{name}" for name in modules), "import sys", "print(*sys.modules)"]
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout.split()
    assert not {name for name in loaded if name.split(".")[0] in FORBIDDEN}
