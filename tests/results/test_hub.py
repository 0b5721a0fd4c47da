"""Push to a local server that answers like the hub."""

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from llkd.errors import ConfigError
from llkd.preflight import require_inputs
from tests.conftest import ROOT, MakeConfig
from tests.json_server import JSONHandler, JSONServer, running

TOKEN = "hf_" + "x" * 34
CARD = "---\nlicense: mit\n---\n\n# A card\n"


class Hub(JSONServer):
    """Repositories with the files of their last commit."""

    def __init__(self) -> None:
        super().__init__(Answers)
        self.repos: dict[str, dict[str, Any]] = {}
        self.tokens: set[str] = set()
        self.checked: list[str] = []
        self.commits = 0
        self.refuse: str | None = None


class Answers(JSONHandler):
    server: Hub

    def get(self) -> None:
        for name, repo in self.server.repos.items():
            if f"/{name}/tree/" in self.path:
                listed = [{"type": "file", "path": p, "size": 1, "oid": "0"} for p in repo["files"]]
                return self.answer(listed)
            if f"/{name}" in self.path:
                return self.answer({"id": name, "sha": "0" * 40, "siblings": []})
        return self.answer({"error": "not found"}, 404)

    def post(self) -> None:
        body = self.body()
        if self.path == "/api/validate-yaml":
            self.server.checked.append(json.loads(body)["content"])
            if self.server.refuse is not None:
                return self.answer({"error": self.server.refuse}, 400)
            return self.answer({"errors": [], "warnings": []})
        self.server.tokens.add(self.headers.get("Authorization", ""))
        if self.path == "/api/repos/create":
            asked = json.loads(body)
            name = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            self.server.repos.setdefault(name, {"asked": asked, "files": {}, "branches": []})
            return self.answer({"url": f"{self.server.url}/{name}"})
        name = "/".join(self.path.split("/")[3:5])
        repo, rest = self.server.repos[name], self.path.split("/")[5:]
        if rest[0] == "preupload":
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False, "oid": None}
                for f in json.loads(body)["files"]
            ]
            return self.answer({"files": files})
        if rest[0] == "branch":
            repo["branches"].append(rest[1])
            return self.answer({})
        assert rest[0] == "commit"
        self.server.commits += 1
        repo["revision"] = rest[1]
        for line in map(json.loads, body.splitlines()):
            path = line["value"].get("path")
            if line["key"] == "file":
                repo["files"][path] = base64.b64decode(line["value"]["content"])
            elif line["key"] == "deletedFile":
                del repo["files"][path]
        return self.answer(
            {"commitUrl": f"{self.server.url}/{name}/commit/1", "commitOid": "1" * 40}
        )


@pytest.fixture
def hub() -> Iterator[Hub]:
    with running(Hub()) as server:
        yield server


PUSH = """
import sys
from pathlib import Path
from llkd.errors import ExportError
from llkd.results.hub import push_folder, require_hub
require_hub()
for folder, repo, kind, private, revision in {pushes!r}:
    try:
        print(push_folder(Path(folder), repo, kind, private, revision))
    except ExportError as error:
        print("ExportError:", error)
"""


def push(url: str, *pushes: tuple[Any, ...]) -> list[str]:
    """The lines that a subprocess prints: the library reads the hub's address on import."""
    done = subprocess.run(
        [sys.executable, "-c", PUSH.format(pushes=pushes)], cwd=ROOT, text=True,
        env={**os.environ, "HF_ENDPOINT": url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": TOKEN,
             "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert TOKEN not in done.stdout + done.stderr
    return done.stdout.strip().splitlines()


def test_a_repository_holds_what_the_folder_holds(hub: Hub, tmp_path: Path) -> None:
    model, rows = tmp_path / "model", tmp_path / "dataset"
    for folder in (model, rows / "data"):
        folder.mkdir(parents=True)
    (model / "README.md").write_text(CARD)
    (model / "weights.safetensors").write_bytes(b"\0\1")
    (rows / "README.md").write_text(CARD)
    (rows / "data/train-00000.parquet").write_bytes(b"PAR1")
    old = {"weights.safetensors": b"old", "gone.bin": b"old", ".gitattributes": b"kept"}
    hub.repos["me/topics"] = {"asked": {}, "files": old, "branches": []}
    said = push(
        hub.url, (str(model), "me/topics", "model", True, None),
        (str(rows), "me/rows", "dataset", False, "second"),
    )  # fmt: skip
    assert said == [f"{hub.url}/{name}/commit/1" for name in ("me/topics", "me/rows")]
    assert hub.commits == 2
    assert hub.repos["me/topics"]["files"] == {
        "README.md": CARD.encode(), "weights.safetensors": b"\0\1", ".gitattributes": b"kept",
    }  # fmt: skip
    assert hub.repos["me/rows"]["files"].keys() == {"README.md", "data/train-00000.parquet"}
    asked = hub.repos["me/rows"]["asked"]
    assert asked["type"] == "dataset"
    assert asked.get("private", False) is False
    assert hub.repos["me/rows"]["branches"] == ["second"]
    assert hub.repos["me/rows"]["revision"] == "second"
    assert hub.tokens == {f"Bearer {TOKEN}"}
    assert set(hub.checked) == {CARD}


def test_a_refused_card_and_an_unreachable_hub_are_errors(hub: Hub, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(CARD)
    hub.refuse = "license is not valid"
    for url, message in ((hub.url, hub.refuse), ("http://127.0.0.1:9", "")):
        (line,) = push(url, (str(tmp_path), "me/topics", "model", True, None))
        assert line.startswith("ExportError: Cannot push")
        assert message in line
    assert hub.repos == {}


def test_a_missing_token_is_reported_before_any_work(
    make_config: MakeConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    wanted = make_config(export={"push_to_hub": True, "model_repo": "me/topics"})
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="a token with write access in HF_TOKEN"):
        require_inputs("export", wanted)
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    with pytest.raises(ConfigError, match="which HF_HUB_OFFLINE=1 forbids"):
        require_inputs("export", wanted)
    monkeypatch.setenv("HF_HUB_OFFLINE", "0")
    require_inputs("export", wanted)
