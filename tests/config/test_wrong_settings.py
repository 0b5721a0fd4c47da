"""Wrong settings are named, with their value or the closest known key."""

import pytest

from llkd.config.load import parse_config
from llkd.errors import ConfigError
from tests.config.test_config import MINIMAL, merged, over_nodes

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
    "gold by both names": (
        merged(gold={"path": "a.csv"}, validation={"path": "a.csv"}), "set one of them",
    ),
    "no rows for the temperature": (merged(teacher__calibration="temperature"), "set gold, or"),
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


def test_all_wrong_settings_are_told_at_once() -> None:
    with pytest.raises(ConfigError) as caught:
        parse_config(merged(student__epochs=0, selection__policy="best", nonsense=1))
    assert str(caught.value).count("\n") == 3
