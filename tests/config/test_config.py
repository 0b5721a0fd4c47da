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


WRONG = {
    "unknown key": (merged(student__epoch=3), "student.epoch: no such setting; did you mean 'epochs'"),
    "unknown section": (merged(techer={}), "techer: no such setting; did you mean 'teacher'"),
    "wrong type": (merged(student__epochs="many"), "student.epochs.*'many'"),
    "zero epochs": (merged(student__epochs=0), "student.epochs.*0"),
    "replicas reversed": (merged(teacher__replicas=[4, 1]), r"teacher: replicas.*\[4, 1\]"),
    "batch does not divide": (
        merged(student__workers=3, student__batch_size=32), r"batch_size \(32\).*workers \(3\)",
    ),
    "one label": (merged(task__labels=["a"]), "task.labels.*at least 2"),
    "labels by case": (merged(task__labels=["Spam", "spam"]), "'Spam' and 'spam' differ only in case"),
    "doubled labels": (merged(task__labels=["a", "a"]), "distinct"),
    "label with spaces": (merged(task__labels=["a ", "b"]), "white space"),
    "example of no label": (
        merged(task__examples=[{"text": "t", "label": "c"}]), r"examples\[0\].label is 'c'",
    ),
    "no instruction": (merged(task={"labels": ["a", "b"]}), "task.instruction: missing"),
    "unknown policy": (merged(selection__policy="best"), "selection.policy.*'best'"),
    "fraction over one": (merged(selection__fraction=1.5), "selection.fraction.*1.5"),
    "unknown engine": (merged(teacher__engine="vlm"), "engine must be one of vllm.*'vlm'"),
    "yes as a label": (merged(task__labels={True: None, "b": None}), "task.labels: True is not text; YAML needs quotes"),
    "an engine of one node": (
        merged(teacher__engine="transformers", teacher__nodes=2), r"nodes \(2\) needs engine vllm.*transformers runs on one node",
    ),
    "no node": (merged(teacher__nodes=0), "teacher.nodes.*0"),
    "GPUs that do not divide": (
        over_nodes(None, tensor_parallel_size=3), r"teacher: engine_args.tensor_parallel_size x pipeline_parallel_size \(3\) must be a multiple of nodes \(2\)",
    ),
    "fewer workers than GPUs": (
        over_nodes({"GPU": 4}, tensor_parallel_size=4), r"\(4\) must be the GPUs .* \(2\) x resources.GPU \(4\): set tensor_parallel_size to 4 and pipeline_parallel_size to 2",
    ),
    "more workers than GPUs": (
        over_nodes({"GPU": 1}, tensor_parallel_size=2, pipeline_parallel_size=2), r"\(4\) must be the GPUs .* \(2\) x resources.GPU \(1\)",
    ),
    "half a GPU on each node": (over_nodes({"GPU": 0.5}), "resources.GPU must be the whole number.*not 0.5"),
    "no GPUs over nodes": (over_nodes({"CPU": 8}), "resources.GPU must be .* not 0"),
    "no number of workers": (over_nodes({"GPU": 2}, tensor_parallel_size="all"), "must be whole numbers"),
    "no path": (merged(corpus={}), "corpus.path: missing"),
    "no budget": (merged(label__budget=0), "label.budget.*0"),
    "budget over one": (merged(label__budget=1.5), "label.budget.*1.5"),
    "all at random": (merged(label__first=1.0), "label.first.*1.0"),
    "no round": (merged(label__rounds=0), "label.rounds.*0"),
    "patience without a validation split": (
        merged(label__budget=0.5, label__patience=1), "label.patience needs a validation split",
    ),
    "key of a section in a list": (
        merged(task__examples=[{"text": "t", "lable": "a"}]), r"examples.0.lable: no such.*'label'",
    ),
    "key of a section that may be null": (
        merged(student__lora={"rnk": 4}), "student.lora.rnk: no such setting; did you mean 'rank'",
    ),
    "text for a number": (merged(student__epochs="two"), r"student.epochs: must be a whole number \(it is 'two'\)"),
    "a number for a section": (merged(student=3), "student: must be a section of settings"),
    "of two types": (
        merged(student__workers="two"), r"student.workers: must be a whole number or must be a list \(it is 'two'\)$",
    ),
    "one where there are two": (merged(teacher__replicas=[1]), "teacher.replicas: must have at least 2$"),
    "a list for labels": (merged(task__labels="a, b"), "task.labels: must be a mapping of names"),
    "infinite": (merged(student__learning_rate=float("inf")), "learning_rate: must be a finite number"),
    **{
        f"teachers that are no list: {teachers}": (merged(teachers=teachers), "teachers must be a list")
        for teachers in (3, {"a": 1}, "m")
    },
    "teachers that are no sections": (merged(teacher=None, teachers=[5]), "teachers?.*must be a section"),
    "a prior that lacks a label": (merged(teacher__prior={"a": 1.0}), "prior must give a share to each of the labels"),
    "no rows for the temperature": (merged(teacher__calibration="temperature"), "set validation, or"),
    "nearest without an embedder": (
        merged(task__examples_from={"path": "x.csv", "choose": "nearest"}), "nearest needs an embedder",
    ),
    "an integer too long to print": ({**MINIMAL, "seed": 2**20_000}, "seed: must be an integer of at most 63 bits"),
    "a run among compared runs": (merged(run_dir="runs/x/compare/llkd-0"), "jobs/compare.py"),
    "a run among rounds": (merged(run_dir="runs/x/rounds/00"), "labelling in rounds"),
    "no model": (merged(student__model=""), "student.model: must not be empty"),
    "a label of two lines": (merged(task__labels=["a\nb", "c"]), "contains a line break"),
    "a label with NUL": (merged(task__labels=["a\0", "c"]), "contains an invalid character"),
    "a folder outside": (merged(predict__path="x.csv", predict__name="../x"), "predict.name: must be a plain directory name"),
    "an absolute folder": (merged(predict__path="x.csv", predict__name="/x"), "predict.name: must be a plain directory name"),
    "a folder with NUL": (merged(predict__path="x.csv", predict__name="a\0"), "predict.name: contains an invalid character"),
    "too long a folder": (merged(predict__path="x.csv", predict__name="x" * 300), "predict.name: must have at most 200 bytes"),
    "too long a path for a folder": (merged(predict__path="x" * 300), "cannot derive a directory name"),
    "NUL in the run directory": (merged(run_dir="runs/a\0"), "run_dir: contains an invalid character"),
    "a key among engine_args": (
        merged(teacher__engine_args={"api_key": "canary"}), "engine_args.api_key would be written.*api_key_env",
    ),
    "a deep token": (
        merged(corpus__dataset_args={"storage_options": {"token": "canary"}}), "dataset_args.storage_options.token",
    ),
    "a password in a path": (merged(corpus__path="s3://me:canary@b/x.csv"), "path holds a password"),
    "a password in the run directory": (merged(run_dir="s3://me:canary@b/x"), "run_dir holds a password"),
    "a password in an address": (
        merged(teacher__engine_args={"base_url": "https://me:canary@host/v1"}), "engine_args.base_url holds a password",
    ),
    **{
        f"a secret in {where}: {secret!r}": (merged(**{where: secret}), message)
        for where, secret, message in (
            ("teacher__engine_args", {"headers": {"api-key": "canary"}}, "teacher: engine_args.headers.api-key would"),
            ("teacher__engine_args", {"X-Api-Key": "canary"}, "engine_args.X-Api-Key would be written"),
            ("teacher__engine_args", {"apiKey": "canary"}, "engine_args.apiKey would be written"),
            ("teacher__engine_args", {"a": [{"b": [{"hub_token": "canary"}]}]}, "engine_args.a.b.hub_token would"),
            ("teacher__engine_args", {"api_key": ["canary"]}, "engine_args.api_key would be written"),
            ("teacher__engine_args", {"base_url": "http://h/v1?a=b&api_key=canary"}, "engine_args.base_url holds"),
            ("teacher__engine_args", {"urls": ["http://h", "http://u:canary@h"]}, "engine_args.urls holds"),
            ("teacher__engine_args", {"headers": [["Authorization", "Bearer canary"]]}, "headers.Authorization would"),
            ("teacher__engine_args", {"headers": [["x", "y"], ["api-key", ["canary"]]]}, "headers.api-key would"),
            ("teacher__engine_args", {"api_key": [["", "canary"]]}, "engine_args.api_key. would"),
            ("teacher__engine_args", {"a": [[["hub_token", "canary"]]]}, "engine_args.a.hub_token would"),
            ("teacher__engine_args", {"a": [["urls", ["http://u:canary@h"]]]}, "engine_args.a.urls holds"),
            ("teacher__engine_args", {"base_url": "http://canary@h/v1"}, "engine_args.base_url holds a password or a key"),
            ("tracking__mlflow", "HTTPS://canary@h:5000", "tracking: mlflow holds a password or a key"),
            ("tracking__mlflow", "https://u%3Acanary@h", "tracking: mlflow holds a password or a key"),
            ("teacher__model", "http://u:canary@h", "teacher: model holds a password or a key"),
            ("teacher__lora", "s3://u:can/ary@b/x", "teacher: lora holds a password"),
            ("student__model", "http://h:80/m?sig=canary", "student: model holds a password or a key"),
            ("corpus__dataset_args", {"aws_secret_access_key": "canary"}, "dataset_args.aws_secret_access_key would"),
            ("test__path", ["x.csv", "https://h/x.csv?X-Amz-Signature=canary"], "test: path holds a password or a key"),
            ("corpus", "s3://me:canary@bucket", "corpus: must be a section of settings$"),
            ("corpus", [{"token": "canary"}], "corpus: must be a section of settings$"),
            ("student__epochs", "http://me:canary@h", "student.epochs: must be a whole number$"),
            ("predict__path", "s3://me:canary@b/x.csv", "predict: path holds a password"),
            ("task__examples_from", {"path": "s3://me:canary@b/x.csv"}, "examples_from: path holds a password"),
        )
    },
    "budget with several teachers": (
        merged(label__budget=0.5, teacher=None, teachers=[{"model": "m"}, {"model": "n"}]),
        r"label.budget \(0.5\) is not supported with several teachers",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("raw", "message"), WRONG.values(), ids=WRONG.keys())
def test_wrong_settings_are_named(raw: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message) as caught:
        parse_config(raw)
    for theirs in ("canary", "Input should", "constrained", "tuple["):  # a secret; pydantic's words
        assert theirs not in str(caught.value)


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


def test_all_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(merged(student__epochs=0, selection__policy="best", nonsense=1))
    assert str(caught.value).count("\n") == 3


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
