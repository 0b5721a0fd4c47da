"""Stand-ins for the expensive edges, each through the real interface, with known answers."""

import hashlib
import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llkd.config.run import TaskConfig, TeacherConfig
from llkd.teacher.engine import LabelBatch
from llkd.teacher.engines.vllm import VLLMEngine

TOPICS = {
    "sport": ["match", "goal", "team", "coach", "league"],
    "tech": ["phone", "software", "network", "chip", "browser"],
    "trade": ["market", "shares", "profit", "tariff", "merger"],
}


class KeywordTeacher:
    """Counts each label's keywords; adds noise drawn from the text, and a bias to the first label.

    engine_args: `delay` seconds a text; `allowance` a file with the number of texts that each process
    may label before it waits, without the file all; `refuse` a word whose texts are refused;
    `overflow` a word whose texts give NaN; `calls` a file
    to which every labelled text's hash is appended. `deaths` is a file and `die` how often its
    process kills itself: at its start, or, with `at` a word, on a text that has it; `broken` a
    word at which it raises what no engine should. `only` is the one label that it ever gives;
    `elsewhere` how many nats of its probability go to other answers.
    """

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        self._labels = task.label_names
        self._arguments = teacher.engine_args
        self._labelled = 0
        if "at" not in self._arguments:
            self._die()

    def label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        if any(self._arguments.get("at", "\n") in text for text in texts):
            self._die()
        if any(self._arguments.get("broken", "\n") in text for text in texts):
            raise ZeroDivisionError("a bug in the engine")
        scores = np.array([self._scores(text) for text in texts]).reshape(len(texts), -1)
        refused = {}
        for i, text in enumerate(texts):
            time.sleep(self._arguments.get("delay", 0.0))
            self._wait_for_allowance()
            if self._arguments.get("refuse", "\n") in text:
                refused[i] = "refused"
            progress(i + 1)
        if path := self._arguments.get("calls"):
            with open(path, "a") as file:
                file.write("".join(f"{text_key(text)} {os.getpid()}\n" for text in texts))
        if label := self._arguments.get("only"):
            scores[:, [name != label for name in self._labels]] -= 30.0
        if word := self._arguments.get("overflow"):
            scores[[word in text for text in texts]] = np.nan
        logprobs = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        logprobs -= self._arguments.get("elsewhere", 0.5)
        tokens = sum(len(text.split()) for text in texts)
        return LabelBatch(logprobs.astype(np.float32), refused, tokens)

    def _wait_for_allowance(self) -> None:
        self._labelled += 1
        if path := self._arguments.get("allowance"):
            while self._labelled > _number_in(path):
                time.sleep(0.05)

    def _die(self) -> None:
        if path := self._arguments.get("deaths"):
            with open(path, "a+") as file:
                file.write("x")
                file.flush()
                if os.path.getsize(path) <= self._arguments["die"]:
                    os.kill(os.getpid(), signal.SIGKILL)

    def _scores(self, text: str) -> list[float]:
        words = text.lower().split()
        noise = np.random.default_rng(int(text_key(text), 16)).normal(size=len(self._labels))
        counts = [sum(words.count(word) for word in TOPICS[name]) for name in self._labels]
        bias = [2.0 if i == 0 else 0.0 for i in range(len(self._labels))]
        return [2.0 * c + 1.5 * n + b for c, n, b in zip(counts, noise, bias, strict=True)]


class SeparateVLLM(VLLMEngine):
    """The real vLLM with its engine in a process of its own, as it is on GPUs."""

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "1"
        super().__init__(teacher, task)


class BrokenTeacher:
    """Cannot be loaded."""

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        from llkd.errors import TeacherError

        raise TeacherError(f"cannot load {teacher.model}")

    def label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        raise AssertionError("never loaded")


def text_key(text: str) -> str:
    """A short hash of a text."""
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def make_texts(count: int, seed: int) -> tuple[list[str], list[str]]:
    """(texts, gold labels): a few keywords of one topic among filler."""
    rng = np.random.default_rng(seed)
    names = list(TOPICS)
    filler = ["the", "a", "of", "on", "with", "new", "old", "was", "is", "today"]
    texts, gold = [], []
    for number in range(count):
        name = names[rng.integers(len(names))]
        words = [*rng.choice(TOPICS[name], 2), *rng.choice(filler, rng.integers(3, 12))]
        rng.shuffle(words)
        texts.append(" ".join([*words, f"n{number}"]))
        gold.append(name)
    return texts, gold


class DeadlyTracker:
    """A progress tracker that kills the process which tells it of a unit of work, once."""

    def __init__(self, unit: str, deaths: str) -> None:
        self._unit, self._deaths = unit, deaths
        self.begin = self.end = self.update = self.missing = self.shard = self.doing = self

    def remote(self, *arguments: Any) -> Any:
        import ray

        if arguments[:1] == (self._unit,) and not os.path.exists(self._deaths):
            with open(self._deaths, "w"):
                os.kill(os.getpid(), signal.SIGKILL)
        return ray.put(None)


def _number_in(path: str) -> float:
    """The number in a file; infinite without the file."""
    try:
        with open(path) as file:
            return float(file.read() or 0)  # empty while it is being written
    except FileNotFoundError:
        return float("inf")
