"""No input can run code: checks the syntax trees of the package and the jobs."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.conftest import ROOT

MODULES = {"pickle", "cloudpickle", "dill", "joblib", "marshal", "shelve"}
BUILTINS = {"eval", "exec", "compile", "__import__"}
SHELL = {"os.system", "os.popen"}
FILES = sorted([*(ROOT / "llkd").rglob("*.py"), *(ROOT / "jobs").glob("*.py")])


def dangers(source: str) -> list[str]:
    """The calls and imports of a module that could run code from a file, with their lines."""
    tree = ast.parse(source)
    return [f"line {node.lineno}: {why}" for node in ast.walk(tree) for why in _of(node)]  # type: ignore[attr-defined]


def _of(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        named = [alias.name for alias in node.names]
        for name in [node.module or ""] if isinstance(node, ast.ImportFrom) else named:
            if name.partition(".")[0] in MODULES:
                yield f"imports {name}"
    if not isinstance(node, ast.Call):
        return
    name, given = ast.unparse(node.func), {word.arg: word.value for word in node.keywords}
    last = name.rpartition(".")[2]

    def says(argument: str, value: str) -> bool:
        return argument in given and ast.unparse(given[argument]) == value

    if name in BUILTINS | SHELL or says("shell", "True"):
        yield f"calls {name}"
    unsafe = last != "safe_load" and not says("Loader", "_Loader")
    if name.startswith("yaml.") and "load" in last and unsafe:
        yield f"calls {name}"
    if name == "torch.load" and not says("weights_only", "True"):
        yield "torch.load without weights_only"
    if last == "from_pretrained":
        if "trust_remote_code" not in given or says("trust_remote_code", "True"):
            yield f"{name} may run a model's own code"
        weights = name.startswith("AutoModel") and "gguf_file" not in given
        if weights and not (
            says("use_safetensors", "True") or "'use_safetensors': True" in ast.unparse(node)
        ):
            yield f"{name} may read pickled weights"
    if says("allow_pickle", "True"):
        yield f"{name} may read pickles"


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_can_run_code(path: Path) -> None:
    assert dangers(path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "import pickle", "from joblib import load", "import cloudpickle as p", "eval('1')",
        "exec(text)", "os.system('ls')", "subprocess.run('ls', shell=True)", "yaml.load(text)",
        "yaml.unsafe_load(text)", "yaml.load(text, Loader=yaml.Loader)", "torch.load(path)",
        "torch.load(path, weights_only=False)", "np.load(path, allow_pickle=True)",
        "AutoTokenizer.from_pretrained(name)",
        "AutoTokenizer.from_pretrained(name, trust_remote_code=True)",
        "AutoModel.from_pretrained(name, trust_remote_code=False)",
    ],
)  # fmt: skip
def test_the_walk_sees(source: str) -> None:
    assert dangers(source)


def test_the_yaml_loader_is_a_safe_one() -> None:
    import yaml

    from llkd.config.load import _Loader

    assert issubclass(_Loader, yaml.SafeLoader)
