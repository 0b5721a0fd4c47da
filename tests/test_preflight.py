"""Inputs and resources of a run are checked before it starts."""

import pytest

from llkd import cli
from llkd.errors import ConfigError, DataError, ResourceError
from llkd.preflight import require_inputs, require_room
from tests.conftest import MakeConfig


def test_files_and_columns_are_told_without_ray(make_config: MakeConfig) -> None:
    require_inputs("run", make_config())
    for stage in ("ingest", "run"):
        with pytest.raises(DataError, match=r"corpus.path: .*nothing.csv does not exist"):
            require_inputs(stage, make_config(corpus={"path": "nothing.csv"}))
        with pytest.raises(DataError, match=r"no column 'gold' \(test.label_column\)"):
            require_inputs(stage, make_config(test={"label_column": "gold"}))
    with pytest.raises(DataError, match="nothing.csv does not exist"):
        require_inputs("predict", make_config(predict={"path": "nothing.csv"}))


@pytest.mark.usefixtures("local_ray")
@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"teacher": {"resources": {"CPU": 99}}}, r"teacher.resources asks for \{CPU: 99\}"),
        ({"teacher": {"resources": {"GPU": 1}}}, r"teacher.resources asks for \{GPU: 1\}"),
        (
            {"teacher": {"nodes": 2, "resources": {"GPU": 1}, "engine_args": {"tensor_parallel_size": 2}}},
            r"teacher.resources asks for \{GPU: 1\} on each of 2 nodes",
        ),
        ({"student": {"resources": {"CPU": 99}}}, r"student.resources asks for \{CPU: 99\}"),
        ({"student": {"workers": 2, "resources": {"CPU": 3}}}, r"student.workers \(2\).*room for 1"),
        ({"student": {"resources": {"memory": 1e15}}}, r"student.resources asks for \{memory: 1e\+15"),
    ],
)  # fmt: skip
def test_what_no_cluster_has_is_told_before_the_teacher_labels(
    make_config: MakeConfig, sections: dict[str, dict[str, object]], message: str
) -> None:
    require_room(make_config())
    with pytest.raises(ResourceError, match=message):
        require_room(make_config(**sections))


@pytest.mark.parametrize(
    ("error", "status"), [(ConfigError("x"), 2), (DataError("x"), 1), (ValueError("x"), 1)]
)
def test_the_exit_status_tells_a_wrong_config_from_a_failure(
    make_config: MakeConfig, error: Exception, status: int
) -> None:
    def work(console: object) -> None:
        raise error

    assert cli.do_logged("ingest", make_config(), work) == status
