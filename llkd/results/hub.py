"""Pushing folders to the hub: each in one commit, so that a repository is never half of anything."""

import os
from pathlib import Path
from typing import Literal

from llkd.errors import ConfigError, ExportError
from llkd.results.cards import CARD

TOKEN = "HF_TOKEN"
"""The variable that holds the hub's token."""


def require_hub() -> None:
    """See that the hub can be asked for anything.

    Raises:
        ConfigError: there is no token, or the libraries are told to stay offline.
    """
    if not os.environ.get(TOKEN):
        raise ConfigError(f"export.push_to_hub needs a token that may write, in {TOKEN}")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        raise ConfigError("export.push_to_hub cannot go with HF_HUB_OFFLINE=1: unset it")


def push_folder(
    folder: Path, repo: str, kind: Literal["model", "dataset"], private: bool, revision: str | None
) -> str:
    """Make a repository hold what a folder holds, once the hub has looked at its card.

    Args:
        folder: with a card.
        repo: `owner/name`; made if it is not there.
        kind: of the repository.
        private: whether it is made a private one.
        revision: the branch, made if it is not there; None: the main one.

    Returns:
        Where the commit is to be seen.

    Raises:
        ExportError: the hub refuses it or cannot be reached.
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
    except Exception as error:  # those of the HTTP library that the hub's uses are among them
        raise ExportError(
            f"Cannot push {folder} to the {kind} repository {repo}: {error}. What was exported is "
            "there; the same command pushes it again."
        ) from error
    return str(commit.commit_url)
