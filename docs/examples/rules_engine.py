"""A teacher made of rules: words that speak for a label.

teacher: {engine: "docs.examples.rules_engine:RulesEngine", model: rules,
          engine_args: {words: {sport: [match, goal], trade: [market, profit]}, trust: 2.0}}
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llkd.config import TaskConfig, TeacherConfig
from llkd.errors import ConfigError
from llkd.teacher.engine import LabelBatch


class RulesEngine:
    """p(label) ∝ exp(trust × the label's words in the text); without any the text is a reject."""

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        words = teacher.engine_args.get("words", {})
        if set(words) != set(task.labels):
            raise ConfigError(
                f"teacher.engine_args.words lacks words for some of {task.label_names}",
                "Give words for each label.",
            )
        self._words = [set(words[name]) for name in task.label_names]
        self._trust = float(teacher.engine_args.get("trust", 2.0))

    def label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        """See llkd.teacher.engine.Engine."""
        found = [text.lower().split() for text in texts]
        count_nc = np.array([[sum(w in own for w in ws) for own in self._words] for ws in found])
        score_nc = self._trust * count_nc.astype(np.float64)
        logprobs_nc = score_nc - np.logaddexp.reduce(score_nc, axis=1, keepdims=True)
        progress(len(texts))
        refused = dict.fromkeys(np.flatnonzero(count_nc.sum(axis=1) == 0).tolist(), "no_rule")
        return LabelBatch(logprobs_nc.astype(np.float32), refused)
