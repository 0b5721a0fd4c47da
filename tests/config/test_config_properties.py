"""Any file or override gives a config or a ConfigError."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from llkd.config.load import changed, dump_config, load_config, parse_config
from llkd.config.run import RunConfig
from llkd.errors import ConfigError
from llkd.store.schema import shard_name, shard_number
from tests.config.test_config import MINIMAL

scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.dates(), st.binary(),
    st.characters(categories=["Cs"]), st.sampled_from([2**64, 2**200]),
)  # fmt: skip
keys = st.one_of(
    st.text(max_size=5), st.integers(), st.none(), st.dates(),
    st.sampled_from([*RunConfig.model_fields, "model", "path", "labels", "examples", "replicas"]),
)  # fmt: skip
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(keys, inner, max_size=4),
    max_leaves=12,
)
plain = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**62), 2**62) | st.floats(allow_nan=False,
    allow_infinity=False) | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(
    st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=4), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


def load(text: str, folder: Path, overrides: list[str]) -> RunConfig | None:
    """None for a ConfigError."""
    file = folder / "config.yaml"
    file.write_bytes(text.encode("utf-8", errors="surrogatepass"))
    try:
        return load_config(str(file), overrides)
    except ConfigError:
        return None


@given(values, st.data())
def test_any_value_in_any_place(value: Any, data: st.DataObject) -> None:
    raw: dict[str, Any] = yaml.safe_load(yaml.safe_dump(MINIMAL))
    section: Any = raw
    for _ in range(data.draw(st.integers(0, 2))):
        within = [each for each in section.values() if isinstance(each, dict)]
        if not within:
            break
        section = data.draw(st.sampled_from(within))
    section[data.draw(keys | st.sampled_from(sorted(map(str, section))))] = value
    for given_value in (raw, value):
        try:
            found = parse_config(given_value)
        except ConfigError:
            continue
        assert parse_config(yaml.safe_load(dump_config(found))) == found


@given(
    st.dictionaries(st.sampled_from(["dtype", "x", "y"]), plain),
    st.integers(1, 2**24), st.floats(0, 1e300, exclude_min=True), st.text(min_size=1),
)  # fmt: skip
def test_a_config_is_the_same_after_dump_and_load(
    arguments: Any, rows: int, rate: float, text: str
) -> None:
    raw: dict[str, Any] = yaml.safe_load(yaml.safe_dump(MINIMAL))
    raw["teacher"]["engine_args"] = arguments
    raw["corpus"]["rows_per_shard"] = rows
    raw["student"]["learning_rate"] = rate
    raw["task"]["instruction"] = text
    if "\0" in text or any(0xD800 <= ord(character) < 0xE000 for character in text):
        with pytest.raises(ConfigError):
            parse_config(raw)
        return
    config = parse_config(raw)
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    assert changed(config, []) == config


SECRET = "canary"
names = st.sampled_from(["Authorization", "apiKey", "x-api-key", "hub_token", "sig", "PASSWORD"])
held = st.one_of(
    names.flatmap(lambda name: st.sampled_from([{name: SECRET}, [[name, SECRET]], [["a", 1], (name, [SECRET])]])),
    st.sampled_from(["", "u:"]).map(lambda user: f"https://{user}{SECRET}@host/x"),
)  # fmt: skip
"""A value that holds a secret in one of the forms in which libraries take it."""
nested = st.recursive(
    held,
    lambda inner: inner.flatmap(lambda it: st.sampled_from(
        [{"a": it}, [it], ["a", it], [["a", it]], [[1, 2], it], {"a": [{"b": it}], "c": "d"}]
    )),
    max_leaves=5,
)  # fmt: skip


@given(nested, st.sampled_from([("teacher", "engine_args"), ("corpus", "dataset_args")]))
def test_no_secret_passes_however_deep_it_is_and_none_is_told(
    value: Any, place: tuple[str, str]
) -> None:
    raw: dict[str, Any] = yaml.safe_load(yaml.safe_dump(MINIMAL))
    section, setting = place
    raw[section][setting] = {"a": value}
    with pytest.raises(ConfigError, match=r"would be written to run\.yaml") as caught:
        parse_config(raw)
    assert SECRET not in str(caught.value)


@given(
    st.text(), st.text(), st.sampled_from(["", "teacher.", "task.labels.", "student.loss.", "seed"])
)
def test_any_override(tmp_path: Path, key: str, value: str, section: str) -> None:
    load(yaml.safe_dump(MINIMAL), tmp_path, [f"{section}{key}={value}"])
    load(yaml.safe_dump(MINIMAL), tmp_path, [f"seed={value}", key])


yaml_words = st.lists(
    st.sampled_from([*"{}[]:,-?&*!|>'\"%@#\n ", "<<", "!!map ", "!!int ", "!!bool ", "&a ", "*a",
                     "0x", "1e3", ".inf", "2024-99-01", "run_dir", "task", "yes", "~", "=", "0b"]),
    max_size=30,
)  # fmt: skip


@given(yaml_words.map("".join) | st.text())
def test_any_file(tmp_path: Path, text: str) -> None:
    load(text, tmp_path, [])
    load(yaml.safe_dump(MINIMAL) + "\nplan: " + text, tmp_path, [])


@given(st.integers(0, 10**17), st.text())
def test_a_shard_is_a_file_of_one_name(shard: int, other: str) -> None:
    assert shard_number(shard_name(shard)) == shard
    for name in (other, f"part-{other}.parquet", f"{other}{shard_name(shard)}"):
        found = shard_number(name)
        assert found is None or shard_name(found) == name
