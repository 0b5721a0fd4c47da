"""Files and links in the documentation exist."""

import re

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_and_links_exist(page) -> None:  # type: ignore[no-untyped-def]
    text = page.read_text()
    named = set(
        re.findall(r"\b(?:llkd|jobs|tests|notebooks)/[\w/.-]+\.(?:py|yaml|json|ipynb)", text)
    )
    links = {target.partition("#")[0] for target in re.findall(r"\]\((?!https?:)([^)]*)\)", text)}
    missing = [name for name in named if not (ROOT / name).exists()]
    missing += [link for link in links if link and not (page.parent / link).exists()]
    assert not missing


def test_one_rows_way_names_files_that_exist() -> None:
    text = (ROOT / "docs/how-it-works.md").read_text()
    drawing = text.partition("## One row's way")[2].split("```")[1]
    files = re.findall(r"\b[\w/]+\.py", drawing)
    assert 15 < len(files) <= 25
    missing = [f for f in files if not ((ROOT / "llkd" / f).exists() or (ROOT / f).exists())]
    assert not missing


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 250
