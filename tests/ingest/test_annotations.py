"""Rows labelled in Argilla and Label Studio, read back from their files."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest

from llkd.config.sources import GoldConfig
from llkd.errors import DataError
from llkd.ingest.gold_rows import source_rows
from llkd.ingest.sources import as_text
from llkd.results.hand.files import HandRow, write_files
from llkd.store.folder import Folder

LABELS = ["plain", 'quo"ted <&>', "ünï"]
TEXTS = [
    'a "quoted", text;\twith\nlines\r\nand commas', "=1+1", "<View value='x'>&amp;</View>", "日本語 👍 ‮rtl",
    "$text {{x}} \\n", "  spaces around  ", "[1, 2]", "null",
]  # fmt: skip


def rows() -> list[HandRow]:
    return [
        HandRow(f"id-{place}", text, place % 2 == 0, 0.1 + place / 100, {"teacher": (LABELS[place % 3], 0.7)})
        for place, text in enumerate(TEXTS)
    ]  # fmt: skip


def read(path: Path, **settings: Any) -> list[tuple[str | None, ...]]:
    source = GoldConfig(path=str(path), probability_column="probability", **settings)
    return [
        (as_text(row.text), as_text(row.gold), as_text(row.others[0]))
        for _, row in source_rows(source, "gold")
    ]


def answers() -> list[str]:
    return [LABELS[(place + 1) % 3] for place in range(len(TEXTS))]


def fill(folder: Path, name: str) -> Path:
    """What a person returns: the file with a label in every row but the last."""
    path = folder / name
    labels = [*answers()[:-1], None]
    if name == "rows.csv":
        with path.open(newline="", encoding="utf-8") as file:
            records = list(csv.DictReader(file))
        for record, label in zip(records, labels, strict=True):
            record["label"] = label or ""
        with path.open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, records[0])
            writer.writeheader()
            writer.writerows(records)
        return path
    content = json.loads(path.read_text())
    for record, label in zip(content, labels, strict=True):
        if name == "argilla.json":
            record["responses"] = (
                {}
                if label is None
                else {"label": [{"value": label, "user_id": "u", "status": "submitted"}]}
            )
            record |= {"status": "completed", "_server_id": "s"}
        else:
            result = [
                {
                    "from_name": "label",
                    "to_name": "text",
                    "type": "choices",
                    "value": {"choices": [label]},
                }
            ]
            record["annotations"] = [
                {"was_cancelled": label is None, "result": [] if label is None else result}
            ]
    path.write_text(json.dumps(content))
    return path


@pytest.mark.parametrize("name", ["rows.csv", "argilla.json", "label_studio.json"])
def test_every_format_comes_back_as_it_was_written(tmp_path: Path, name: str) -> None:
    write_files(Folder(str(tmp_path)), rows(), LABELS)
    path = fill(tmp_path, name)
    found = read(path)
    assert [text for text, _, _ in found] == TEXTS
    assert [label or None for _, label, _ in found] == [*answers()[:-1], None]
    assert [float(p or 0) for _, _, p in found] == pytest.approx(
        [row.probability for row in rows()]
    )


def test_parquet_comes_back_too(tmp_path: Path) -> None:
    write_files(Folder(str(tmp_path)), rows(), LABELS)
    assert [text for text, _, _ in read(tmp_path / "rows.parquet")] == TEXTS


def test_suggestions_are_beside_the_empty_label_or_absent(tmp_path: Path) -> None:
    write_files(Folder(str(tmp_path)), rows(), LABELS)
    header = (tmp_path / "rows.csv").read_text().partition("\n")[0]
    assert header == "id,text,label,teacher,teacher_confidence,uniform,probability"
    [task, *_] = json.loads((tmp_path / "label_studio.json").read_text())
    assert task["predictions"][0]["result"][0]["value"] == {"choices": ["plain"]}
    blind = [HandRow(row.id, row.text, row.uniform, row.probability, {}) for row in rows()]
    write_files(Folder(str(tmp_path / "blind")), blind, LABELS)
    for file in (tmp_path / "blind").iterdir():
        if file.suffix != ".xml":
            assert b"teacher" not in file.read_bytes()


def test_the_interface_of_label_studio_is_xml_with_every_label(tmp_path: Path) -> None:
    from xml.dom.minidom import parseString

    write_files(Folder(str(tmp_path)), rows(), LABELS)
    document = parseString((tmp_path / "label_studio.xml").read_text())
    assert [
        node.getAttribute("value") for node in document.getElementsByTagName("Choice")
    ] == LABELS


def test_several_answers_to_a_row_are_several_rows(tmp_path: Path) -> None:
    path = tmp_path / "argilla.json"
    responses = [{"value": label, "status": "submitted"} for label in ("plain", "ünï")]
    drafts = [{"value": "plain", "status": "draft"}]
    path.write_text(
        json.dumps([
            {"fields": {"text": "a"}, "responses": {"label": responses}, "metadata": {"probability": 1}},
            {"fields": {"text": "b"}, "responses": {"label": drafts}, "metadata": {"probability": 1}},
        ])
    )  # fmt: skip
    assert [row[:2] for row in read(path)] == [("a", "plain"), ("a", "ünï"), ("b", None)]


def test_plain_objects_in_an_array_are_rows(tmp_path: Path) -> None:
    path = tmp_path / "min.json"
    path.write_text(
        json.dumps([
            {"text": "a", "label": "plain", "probability": 0.5},
            {"text": "b", "label": {"choices": ["plain", "ünï"]}, "probability": None},
            7,
        ])
    )  # fmt: skip
    source = GoldConfig(path=str(path), probability_column="probability")
    found = [row for _, row in source_rows(source, "gold")]
    assert [(row.text, row.gold, row.reason) for row in found] == [
        ("a", "plain", None), ("b", None, None), (None, None, "damaged"),
    ]  # fmt: skip


def test_a_broken_array_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "cut.json"
    path.write_text('[{"text": "a"}, {"te')
    with pytest.raises(DataError, match=r"Cannot read .*cut\.json"):
        read(path)
