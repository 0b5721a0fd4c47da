"""Workers that do not fit or cannot load the student are told; how many CPUs each gets."""

from pathlib import Path

import pytest

from llkd.distill.stage import distill, largest_share
from llkd.errors import ResourceError, StudentError
from llkd.store.folder import Folder
from llkd.store.manifest import begun
from llkd.store.schema import RunLayout
from llkd.teacher.calibrate import calibrate
from tests.conftest import MakeConfig, SilentTracker
from tests.distill.test_stage import labelled, live_tracker

pytestmark = pytest.mark.usefixtures("local_ray")


def test_workers_that_do_not_fit_are_refused(
    make_config: MakeConfig, tracker: SilentTracker
) -> None:
    config = make_config(test=None, student={"workers": 2, "resources": {"CPU": 3}})
    labelled(config, tracker)
    with pytest.raises(
        ResourceError, match=r"do not fit on this cluster, .* 1: .*CPU to 2 or less"
    ):
        distill(config, calibrate(config), tracker)


def test_a_student_that_cannot_load_says_so_and_is_not_tried_for_ever(
    tmp_path: Path, make_config: MakeConfig, tracker: SilentTracker
) -> None:
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad/config.json").write_text("{}")
    config = make_config(test=None, student={"model": str(tmp_path / "bad"), "max_failures": 9})
    labelled(config, tracker)
    with pytest.raises(StudentError, match=r"student.model: cannot load"):
        distill(config, calibrate(config), live_tracker())
    assert not begun(Folder(RunLayout(config.run_dir).epochs))  # another model may be tried there


@pytest.mark.parametrize(
    ("nodes", "workers", "share"),
    [
        ([2], 2, 1),
        ([2], 3, 0.5),
        ([6], 3, 2),
        ([8, 8], 3, 4),
        ([8, 8], 1, 8),
        ([1], 1, 1),
        ([0, 1], 5, 0.125),
        ([16, 4], 3, 5),
        ([16, 4], 4, 4),
    ],
)
def test_the_default_share_lets_all_workers_in(
    nodes: list[float], workers: int, share: float
) -> None:
    assert largest_share(nodes, workers) == share
    # as Ray counts them, in floating point
    assert sum(node // share for node in nodes) >= workers
