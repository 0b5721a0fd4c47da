"""Settings are read, overridden, and rejected with their value or the closest known key."""

import os
import pickle
from datetime import date
from pathlib import Path

import pytest
import yaml

from llkd.config.load import dump_config, load_config, parse_config
from llkd.errors import ConfigError
from llkd.store.folder import portable_path
from llkd.teacher.stage import default_resources
from tests.conftest import ROOT

MINIMAL = {
    "run_dir": "runs/x",
    "task": {"instruction": "Which?", "labels": {"a": None, "b": "the second"}},
    "corpus": {"path": "x.parquet"},
    "teacher": {"model": "some/model"},
    "student": {"model": "other/model"},
}


def merged(**changes: object) -> dict[str, object]:
    raw = yaml.safe_load(yaml.safe_dump(MINIMAL))
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            raw.setdefault(section, {})[name] = value
        else:
            raw[section] = value
    return raw


def test_a_setting_given_twice_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("run_dir: x\nstudent: {model: m, epochs: 2,\n  epochs: 3}\n")
    with pytest.raises(ConfigError, match=r"'epochs' is given twice\s+in .*line 3"):
        load_config(str(file))


def test_sections_can_be_merged_into_others(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    common = "{model: m, weight: 2, calibration: none}"
    file.write_text(
        yaml.safe_dump({k: v for k, v in MINIMAL.items() if k != "teacher"})
        + f"teachers:\n- &one {common}\n- &two {{<<: *one, weight: 3}}\n- {{<<: *two, weight: 4}}\n"
    )
    teachers = load_config(str(file)).teachers
    assert [(each.weight, each.calibration) for each in teachers] == [
        (2, "none"), (3, "none"), (4, "none"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [
        "2024-02-30",
        "0b_",
        "!!bool x",
        "!!map x",
        "{[1]: 2}",
        "[" * 2000,
        "9" * 5000,
        "{a: 1, a: 2}",
    ],
)
def test_yaml_that_python_cannot_hold_is_refused(tmp_path: Path, value: str) -> None:
    file = tmp_path / "config.yaml"
    file.write_text(yaml.safe_dump(MINIMAL))
    with pytest.raises(ConfigError, match=r"The value of student\.epochs, .* is not valid YAML"):
        load_config(str(file), [f"student.epochs={value}"])


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (float("inf"), "x: must be a finite number, not inf"),
        (float("nan"), "x: must be a finite number, not nan"),
        (1 << 70, "x: must be an integer of at most 63 bits"),
        (date(2024, 1, 1), "x: must be text or a number, not a date"),
        (b"x", "x: must be text or a number, not a bytes"),
        ([1, "a\x00b"], r"x\.1: contains an invalid character"),
        ("\ud800", "x: contains an invalid character"),
        ({1: 2}, "x: 1 is not text"),
    ],
)
def test_what_a_file_cannot_hold_is_refused(value: object, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"teacher\.engine_args\.{message}"):
        parse_config(merged(teacher__engine_args={"x": value}))


@pytest.mark.parametrize("text", ["\x85", "a\x85b", "a\u2028b", "\u2029a"])
def test_line_breaks_of_unicode_survive_run_yaml(text: str) -> None:
    config = parse_config(merged(task__instruction=text))
    assert parse_config(yaml.safe_load(dump_config(config))) == config


def test_a_section_that_holds_itself_is_refused() -> None:
    loop: dict[str, object] = {}
    loop["x"] = loop
    with pytest.raises(ConfigError, match=r"teacher\.engine_args\.x: contains itself"):
        parse_config({**MINIMAL, "teacher": {"model": "m", "engine_args": loop}})


@pytest.mark.parametrize(
    "path", sorted((ROOT / "jobs/configs").glob("*.yaml")), ids=lambda p: p.stem
)
def test_the_configs_that_come_with_llkd_load(path: Path) -> None:
    config = load_config(str(path))
    assert load_config(str(path), ["teacher.replicas=[2,3]"]).teacher.replicas == (2, 3)
    assert len(config.task.labels) >= 5


def test_several_teachers_in_place_of_one(tmp_path: Path) -> None:
    teachers = [{"model": "one"}, {"model": "two", "weight": 2.0}]
    config = parse_config({**MINIMAL, "teacher": None, "teachers": teachers})
    alone = config.of_each_teacher
    assert [each.teacher.model for each in alone] == ["one", "two"]
    assert [each.teacher_number for each in alone] == [0, 1]
    assert config.teacher.model == "one"
    assert parse_config(yaml.safe_load(dump_config(config))) == config
    with pytest.raises(ConfigError, match="set teacher or teachers, not both"):
        parse_config({**MINIMAL, "teachers": teachers})


def test_defaults() -> None:
    config = parse_config(MINIMAL)
    assert config.task.label_names == ["a", "b"]
    assert (config.corpus.rows_per_shard, config.student.epochs) == (8192, 4)
    assert (config.teacher.calibration, config.selection.policy) == ("batch", "llkd")
    assert config.student.learning_rate == 5e-5


@pytest.mark.parametrize(
    ("changes", "estimates"),
    [
        ({}, True),
        ({"teacher__calibration": "none"}, False),
        ({"teacher__prior": {"a": 3, "b": 1}}, False),
        ({"selection__estimate_prior": False}, False),
        ({"label__budget": 0.5}, False),
        ({"label": {"budget": 0.5, "rounds": 1}}, True),
        ({"teacher": None, "teachers": [{"model": "x"}, {"model": "y"}]}, True),
        (
            {
                "teacher": None,
                "teachers": [{"model": "x"}, {"model": "y", "calibration": "none"}],
            },
            False,
        ),
    ],
)
def test_frequencies_that_somebody_knows_are_not_estimated(
    changes: dict[str, object], estimates: bool
) -> None:
    assert parse_config(merged(**changes)).estimates_prior is estimates


def test_labels_may_be_a_list() -> None:
    config = parse_config(merged(task__labels=["x", "y"]))
    assert config.task.labels == {"x": None, "y": None}


def test_overrides_are_yaml(tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(MINIMAL))
    config = load_config(
        str(path), ["student.epochs=2", "teacher.replicas=[1, 3]", "test.path=t.csv", "seed=7"]
    )
    assert (config.student.epochs, config.teacher.replicas, config.seed) == (2, (1, 3), 7)
    assert config.test is not None
    assert config.test.path == os.path.abspath("t.csv")


def test_a_dumped_config_reads_back_the_same(tmp_path: Path) -> None:
    config = parse_config(merged(task__examples=[{"text": "é", "label": "a"}]))
    path = tmp_path / "run.yaml"
    path.write_text(dump_config(config), encoding="utf-8")
    assert load_config(str(path)) == config


def test_config_survives_pickle_and_is_frozen() -> None:
    config = parse_config(MINIMAL)
    assert pickle.loads(pickle.dumps(config)) == config
    with pytest.raises(ValueError, match="frozen"):
        config.student.epochs = 3  # type: ignore[misc]


def over_nodes(resources: dict[str, float] | None, **engine_args: object) -> dict[str, object]:
    return merged(teacher__nodes=2, teacher__resources=resources, teacher__engine_args=engine_args)


def test_a_replica_over_nodes_has_a_worker_for_each_gpu() -> None:
    sizes = {"tensor_parallel_size": 2, "pipeline_parallel_size": 2}
    assert parse_config(over_nodes({"GPU": 2, "CPU": 8}, **sizes)).teacher.nodes == 2
    assert default_resources(parse_config(over_nodes(None, **sizes))) == {"GPU": 2, "CPU": 1}
    own = parse_config({**MINIMAL, "teacher": {"model": "m", "engine": "mine:Engine", "nodes": 2,
                        "engine_args": {"tensor_parallel_size": 4}}})  # fmt: skip
    assert default_resources(own) == {"GPU": 2, "CPU": 1}
    # On one node they are the engine's own business.
    parse_config(merged(teacher__resources={"GPU": 1}, teacher__engine_args=sizes))


@pytest.mark.parametrize(
    "arguments",
    [
        {"hf_overrides": {"pad_token": "<pad>", "classifier_from_token": ["no", "yes"]}},
        {"hf_overrides": {"pad-token": "<pad>", "eosToken": "</s>", "text_config_mask_token": "_"}},
        {"api_key_env": "MY_KEY", "base_url": "http://127.0.0.1:8000/v1/a@b?region=x"},
        {"tokenizer": "s3://b/x", "max_num_batched_tokens": 512, "token": True, "hf_token": None},
        {
            "columns": ["key", "text"],
            "spans": [["pad_token", "<pad>"], ["key"], [1, "x"], ["key", "a", "b"]],
        },
        {"base_url": "http://h/a@b", "proxy": "https://h?to=a@b", "docs": "http://h#a@b"},
        {"logits_processor_pattern": "a.*", "text_key": "body", "tokenizer_mode": "auto"},
    ],
)
def test_what_is_no_secret_is_taken(arguments: dict[str, object]) -> None:
    assert parse_config(merged(teacher__engine_args=arguments)).teacher.engine_args == arguments
    paths = ["abfss://container@account.dfs.core.windows.net/x", "hdfs://me@host:8020/x.csv"]
    assert parse_config(merged(corpus__path=paths)).corpus.paths == tuple(paths)
    labels = {"password": "logins", "token": "http://a:b@c"}
    assert parse_config(merged(task__labels=labels)).task.labels == labels


def test_names_of_data_sets_and_paths_stay_in_their_folder() -> None:
    for path in ("datasets:../../x", "/abs/../x.csv", "datasets:x", "a/../x.parquet", "../x"):
        assert parse_config(merged(predict__path=path)).predict.dataset == "predict/x"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("a: [", "not valid YAML"),
        ("- 1", "must hold a mapping"),
        ("", "must hold a mapping"),
        ("? [1]\n: 2", "name of a setting cannot be a list"),
        ("a: " + "[" * 3000, "nested too deep"),
        ("a\0: 1", "not valid YAML"),
        ("!!python/object/apply:os.system ['touch hacked']", "not valid YAML"),
        (None, "Cannot read"),
    ],
)
def test_unreadable_files(tmp_path: Path, content: str | None, message: str) -> None:
    path = tmp_path / "c.yaml"
    if content is not None:
        path.write_text(content)
    with pytest.raises(ConfigError, match=message):
        load_config(str(path))


@pytest.mark.parametrize("override", ["seed", "=3", "seed.deep=1", "seed=[", "task.labels.a.x=1"])
def test_wrong_overrides(tmp_path: Path, override: str) -> None:
    path = tmp_path / "c.yaml"
    path.write_text(yaml.safe_dump(merged(seed=1, task__labels={"a": "x", "b": None})))
    with pytest.raises(ConfigError):
        load_config(str(path), [override])


def test_local_paths_become_absolute_and_uris_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m").mkdir()
    raw = merged(
        corpus__path=["a.csv", "s3://b/c.parquet", "datasets:x"], student__model="m",
        teacher__lora="m", predict__path=["d.csv"],
        task__examples_from={"path": "b.csv", "choose": "nearest", "embedder": "m"},
    )  # fmt: skip
    config = parse_config(raw)
    assert config.predict.path == (str(tmp_path / "d.csv"),)
    assert config.task.examples_from is not None
    assert config.task.examples_from.path == str(tmp_path / "b.csv")
    assert config.task.examples_from.embedder == config.teacher.lora == str(tmp_path / "m")
    assert config.run_dir == str(tmp_path / "runs/x")
    assert config.corpus.paths == (str(tmp_path / "a.csv"), "s3://b/c.parquet", "datasets:x")
    assert config.student.model == str(tmp_path / "m")
    assert config.teacher.model == "some/model"
    assert portable_path(config.run_dir) == "runs/x"
