"""The report in a browser: 200 labels, with texts and names that look like code."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from llkd.results.report import write_report
from llkd.results.report.charts import MAX_NAME
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout
from tests.results.report import made
from tests.results.report.browser import DESKTOP, HIDDEN_LABELS, PHONE, Seen, needs_browser, opened

pytestmark = needs_browser

HOSTILE = [
    "</script><script>document.title='taken'</script>",
    "<img src=x onerror=\"document.title='taken'\">",
    "<b>bold</b>", "<a href='http://127.0.0.1:9/'>link</a>", "%{x}<extra></extra>", "{{ 7 * 7 }}",
    "a&amp;b &lt;", "\"'`", "__proto__", "$x^2$", "\u202eright to left", "مرحبا بالعالم", "javascript:alert(1)",
    "]]><!--", "=HYPERLINK(1)", "long " + "x" * 300,
]  # fmt: skip
NAMES = [*HOSTILE, *(f"label {number:03d}" for number in range(len(HOSTILE), 200))]
ROWS, SHARDS = 500, 3


def noisy(class_n: np.ndarray, right: float, rng: np.random.Generator) -> np.ndarray:
    """Distributions of a labeller with that accuracy, (N, C)."""
    said_n = np.where(rng.random(len(class_n)) < right, class_n, (class_n + 1) % len(NAMES))
    sure_n = rng.uniform(0.2, 0.95, len(class_n))
    probs_nc = rng.dirichlet(np.full(len(NAMES), 0.05), len(class_n)) + 1e-6
    probs_nc[np.arange(len(class_n)), said_n] += 5
    probs_nc /= probs_nc.sum(axis=1, keepdims=True)
    return sure_n[:, None] * probs_nc + (1 - sure_n[:, None]) / len(NAMES)


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The report of a finished run with 200 labels, some of them hostile."""
    run_dir = tmp_path_factory.mktemp("hostile") / "run"
    config = made.a_config(
        run_dir, NAMES, corpus={"path": "c", "label_column": "gold"},
        student={"model": "s", "epochs": 3, "validation_fraction": 0.1},
        task={"instruction": HOSTILE[0], "labels": dict.fromkeys(NAMES, HOSTILE[1])},
        plan={"price_per_hour": 2.5},
    )  # fmt: skip
    rng = np.random.default_rng(0)
    gold = [rng.permutation(np.arange(ROWS) % len(NAMES)) for _ in range(SHARDS)]
    texts = [[HOSTILE[i % len(HOSTILE)] + f" {i}" for i in range(ROWS)] for _ in range(SHARDS)]
    for dataset in ("corpus", "test"):
        made.ingested(config, dataset, list(zip(texts, gold, strict=True)))
        made.labelled(config, dataset, [noisy(part, 0.7, rng) for part in gold])
    for epoch in range(3):
        unsure = [rng.beta(2, 2 + epoch, ROWS) for _ in range(SHARDS)]
        held = {"rows": 50, "accuracy": 0.8, "macro_f1": 0.7 + epoch / 20, "loss": 0.5}
        made.trained(config, epoch, unsure, validation=held)
    made.distilled(config, 3)
    made.tested(config, [noisy(part, 0.85, rng) for part in gold])
    predictions = Folder(RunLayout(config.run_dir).predictions("corpus"))
    made.predicted(config, predictions, [noisy(part, 0.85, rng) for part in gold])
    made.rejected(config, "ingest-corpus", [{"row": 1, "reason": HOSTILE[0], "detail": HOSTILE[1]}])
    return Path(write_report(config))


@pytest.fixture(scope="module")
def desktop(report: Path) -> Iterator[Seen]:
    with opened(report, DESKTOP) as seen:
        yield seen


def assert_drawn(seen: Seen) -> None:
    assert seen.page.locator("[data-figure]").count() == 17
    assert seen.undrawn == []
    assert seen.overflow <= 0
    assert seen.page.evaluate(HIDDEN_LABELS) == []
    for select in seen.page.locator("select").all():
        select.select_option(index=select.locator("option").count() - 1)
    assert seen.undrawn == []
    assert seen.troubles == []


def test_drawn_at_the_width_of_a_phone(report: Path) -> None:
    with opened(report, PHONE) as seen:
        assert_drawn(seen)


def test_drawn_at_the_width_of_a_desktop(desktop: Seen) -> None:
    assert_drawn(desktop)


def test_texts_and_names_are_shown_literally(desktop: Seen) -> None:
    page, seen = desktop.page, desktop
    assert page.title() == "run: report"
    assert page.locator("img").count() == 0
    assert page.locator("main a[href^=http], main svg a").count() == 0
    page.evaluate("for (const fold of document.querySelectorAll('details')) fold.open = true")
    cells = page.locator("#student > .scroll td:first-child").all_text_contents()
    assert cells == NAMES
    assert page.locator(".task").inner_text() == HOSTILE[0]
    shown = " ".join(page.locator("blockquote").all_text_contents())
    assert sum(f"{text} " in shown for text in HOSTILE[:-1]) > 8
    assert HOSTILE[0] in " ".join(page.locator("#examples .facts").all_text_contents())
    ticks = set(page.locator("[data-figure=teacher-labels] .ytick").all_text_contents())
    cut = {name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 1]}…" for name in NAMES}
    assert ticks <= cut
    assert any("<" in tick for tick in ticks)
    assert any("&amp;" in tick for tick in ticks)
    assert seen.troubles == []


def test_columns_sort_and_print_opens_all_details(desktop: Seen) -> None:
    page, seen = desktop.page, desktop
    head = page.locator("#student > .scroll th", has_text="student F1")
    column = head.evaluate("head => head.cellIndex") + 1
    head.click()
    cells = page.locator(f"#student > .scroll td:nth-child({column})").all_text_contents()
    values = [float(cell) for cell in cells]
    assert values == sorted(values, reverse=True)
    assert values[0] > values[-1]
    assert page.pdf(format="A4")[:4] == b"%PDF"
    assert page.locator("details:not([open])").count() == 0
    assert seen.troubles == []
