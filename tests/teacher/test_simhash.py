"""Cells of similar texts."""

import numpy as np
import pyarrow as pa

from llkd.teacher.simhash import BATCH_ROWS, _signs, text_cells


def cells(texts: list[str], bits: int = 8) -> list[int]:
    return text_cells(pa.chunked_array([texts], pa.large_string()), bits).tolist()


def test_a_cell_by_hand() -> None:
    # A bit is set where more words have it than not; "b" counts twice.
    signs = _signs(["a", "b", "c"], 8)
    total = signs[0] + 2 * signs[1] + signs[2]
    expected = sum(1 << bit for bit in range(8) if total[bit] > 0)
    assert cells(["a b b c"]) == [expected]
    assert set(np.unique(signs)) == {-1.0, 1.0}


def test_order_case_and_space_do_not_matter() -> None:
    assert len(set(cells(["The new phone", "  the NEW\tphone\n", "phone new the"]))) == 1
    assert cells([""]) == cells(["  "])
    assert cells([]) == []


def test_near_duplicates_share_a_cell_and_others_spread() -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(map(str, rng.integers(0, 20000, 60))) for _ in range(1000)]
    found = np.array(cells(texts))
    assert len(np.unique(found)) > 200
    changed = np.array(cells([f"{text} again" for text in texts]))
    assert (found == changed).mean() > 0.5
    apart = np.bitwise_count(found ^ changed)
    assert apart.mean() < 1
    assert np.bitwise_count(found ^ np.roll(found, 1)).mean() > 3.5


def test_the_cell_of_a_text_does_not_depend_on_its_position() -> None:
    texts = [f"text number {i} of many" for i in range(BATCH_ROWS + 10)]
    found = cells(texts)
    assert found[-5:] == cells(texts[-5:])
    chunks = pa.chunked_array([texts[:3], [], texts[3:]], pa.large_string())
    assert text_cells(chunks, 8).tolist() == found
    assert max(found) < 256
    assert max(cells(texts, 4)) < 16
