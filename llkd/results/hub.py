"""Push folders to the hub, each in one commit, so that a repository is never incomplete."""

import os
from pathlib import Path
from typing import Literal

from llkd.errors import ConfigError, ExportError
from llkd.results.cards import CARD

TOKEN = "HF_TOKEN"
"""The variable that holds the hub's token."""


def require_hub() -> None:
    """Check that a push to the hub can work.

    Raises:
        ConfigError: there is no token, or the environment forbids network access.
    """
    if not os.environ.get(TOKEN):
        raise ConfigError(
            f"export.push_to_hub needs a token with write access in {TOKEN}",
            "Set it, or set export.push_to_hub to false.",
        )
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ConfigError(
            "export.push_to_hub needs network access, which HF_HUB_OFFLINE=1 forbids",
            "Unset HF_HUB_OFFLINE, or set export.push_to_hub to false.",
        )


def push_folder(
    folder: Path, repo: str, kind: Literal["model", "dataset"], private: bool, revision: str | None
) -> str:
    """Replace the content of a repository by a folder, after the hub has validated its card.

    Args:
        folder: with a card.
        repo: `owner/name`; created if missing.
        kind: of the repository.
        private: whether a created repository is private.
        revision: the branch, created if missing; None for the main branch.

    Returns:
        The URL of the commit.

    Raises:
        ExportError: the hub refuses the push or cannot be reached.
    """
    from huggingface_hub import DatasetCard, HfApi, ModelCard

    api = HfApi(token=os.environ[TOKEN])
    try:
        (ModelCard if kind == "model" else DatasetCard).load(folder / CARD).validate()
        api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, repo_type=kind, exist_ok=True)
        commit = api.upload_folder(
            folder_path=folder, repo_id=repo, repo_type=kind, revision=revision,
            commit_message=f"The {'student' if kind == 'model' else 'labelled rows'} of an LLKD run",
            delete_patterns="*",
        )  # fmt: skip
    except Exception as error:  # the hub's library also passes on errors of its HTTP library
        raise ExportError(
            f"Cannot push {folder} to the {kind} repository {repo}: {error}.",
            "The export is complete: run the same command again to push it.",
        ) from error
    return str(commit.commit_url)
