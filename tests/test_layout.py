"""Packages are ordered by the flow of data: each imports only from those before it."""

import ast
from functools import cache
from pathlib import Path

import llkd

PACKAGES = (
    "errors", "core", "store", "config", "cluster", "ingest", "teacher", "student", "distill",
    "results", "pipeline", "lab",
)  # fmt: skip
"""In order; `pipeline` stands for the modules at the root."""
ROOT = Path(llkd.__file__).parent


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in ROOT.rglob("*.py")}


def package_of(module: str) -> str:
    """The package of a module; of the modules at the root `errors`, or `pipeline` for the rest."""
    if module == "llkd":
        return "errors"  # its version, which any module may read
    name = module.split(".")[1]
    return name if name in PACKAGES else "pipeline"


def imported_by(module: str, everywhere: bool) -> set[str]:
    """The modules of LLKD that a module imports, when it is loaded or anywhere in its code."""
    found = set()
    tree = ast.parse(MODULES[module].read_text())
    for node in ast.walk(tree) if everywhere else tree.body:
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            found |= inner if inner <= MODULES.keys() else inner | {node.module}
    return {name for name in found if name in MODULES and name != module}


IMPORTS = {module: imported_by(module, everywhere=True) for module in MODULES}
MAX_LEVELS = 11
"""Longest chain of modules, each of which imports the next when it is loaded."""


def test_each_package_imports_only_from_those_before_it() -> None:
    wrong = [
        f"{module} imports {name}"
        for module, names in IMPORTS.items()
        for name in names
        if module != "llkd"
        and PACKAGES.index(package_of(name)) > PACKAGES.index(package_of(module))
    ]
    assert not wrong


def test_no_module_imports_itself_by_way_of_others() -> None:
    levels: dict[str, int] = {}

    def level(module: str, above: tuple[str, ...]) -> int:
        assert module not in above, " -> ".join((*above, module))
        if module not in levels:
            below = (level(name, (*above, module)) for name in IMPORTS[module] if name != "llkd")
            levels[module] = 1 + max(below, default=0)
        return levels[module]

    for module in MODULES:
        if module != "llkd":
            level(module, ())


def test_few_levels_of_modules() -> None:
    @cache
    def chain(module: str) -> list[str]:
        below = imported_by(module, everywhere=False) - {"llkd"}
        return [module, *max(map(chain, below), key=len, default=[])]

    longest = max(map(chain, MODULES), key=len)
    assert len(longest) <= MAX_LEVELS, " -> ".join(longest)


def test_only_the_lab_is_beside_the_product() -> None:
    assert not [m for m, names in IMPORTS.items() if package_of(m) != "lab" and any(
        package_of(name) == "lab" for name in names)]  # fmt: skip
