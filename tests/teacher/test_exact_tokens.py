"""Exact log-probabilities from an endpoint that takes token ids: against a small server with vLLM's API; the real one
is asked in test_openai.py."""

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from llkd.config.run import TaskConfig, TeacherConfig
from llkd.errors import TeacherError
from llkd.teacher.engines.openai import OpenAIEngine
from tests.demo import prepared
from tests.json_server import JSONHandler, JSONServer, running

KEY = "sk-a-secret-of-the-tests"
TASK = TaskConfig(instruction="Which topic?", labels=["card lost", "card stolen", "card", "sport"])  # type: ignore[arg-type]


def logprob(last: int, token: int) -> float:
    """What the server says of a token after another: at most half of the probability for four of them."""
    return -2.0 - (last * 31 + token * 17) % 97 / 50


class Server(JSONServer):
    """Serves the model `m`; `mode` is what it does wrong."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.mode = ""
        self.asked: list[dict[str, Any]] = []


class Handler(JSONHandler):
    server: Server

    def get(self) -> None:
        if self.server.mode == "locked":
            message = f"no, {self.headers['Authorization']}"
            return self.answer({"error": {"message": message}}, 401)
        model = {"id": "m", "object": "model", "created": 0, "owned_by": "x"}
        length = {} if self.server.mode == "not vllm" else {"max_model_len": 300}
        return self.answer({"data": [model | length], "object": "list"})

    def post(self) -> None:
        body = json.loads(self.body())
        self.server.asked.append(body)
        if self.server.mode == "old" or self.path != "/inference/v1/generate":
            return self.answer({"error": {"message": "not found"}}, 404)
        sampling = body["sampling_params"]
        wanted = sampling["logprob_token_ids"]
        if sampling["logprobs"] != len(wanted) or len(wanted) > 20:  # as vLLM demands
            return self.answer({"error": {"message": "logprobs must equal"}}, 400)
        top = [
            {"token": f"token_id:{token}", "logprob": logprob(body["token_ids"][-1], token)}
            for token in [7, *wanted][: len(wanted)]  # the sampled one, and as many as asked for
        ]
        if self.server.mode == "deaf":
            top = top[:-1]
        content = [{"token": "token_id:7", "logprob": -0.1, "top_logprobs": top}]
        return self.answer({"choices": [{"index": 0, "logprobs": {"content": content}}]})


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with running(Server()) as server:
        yield server


def engine(server: Server, model: str = "m", **settings: Any) -> OpenAIEngine:
    arguments = {
        "base_url": f"{server.url}/v1", "api_key_env": "TEACHER_KEY", "max_retries": 0,
        "tokenizer": str(prepared() / "teacher"),
    }  # fmt: skip
    return OpenAIEngine(
        TeacherConfig(model=model, engine="openai", engine_args=arguments, **settings), TASK
    )


def test_labels_of_several_tokens_are_scored_exactly(server: Server, smollm: Any) -> None:
    teacher = engine(server, max_text_tokens=20)
    done: list[int] = []
    batch = teacher.label(["a lost card", "", "long " * 200], [None] * 3, done.append)
    assert batch.refused == {1: "no_tokens"}
    assert done == [1, 2]
    verbalizer = teacher.prompter.verbalizer
    assert verbalizer.name == "sequence"
    assert len(server.asked) == 2 * len(verbalizer.questions)
    assert batch.tokens == sum(len(body["token_ids"]) for body in server.asked)
    assert max(len(body["token_ids"]) for body in server.asked) < 300
    [prompt] = teacher.prompter.prompts(["a lost card"], 300)
    assert prompt is not None
    for place, parts in enumerate(verbalizer.parts):
        by_hand = sum(
            logprob([*prompt, *verbalizer.questions[q].path][-1], verbalizer.questions[q].tokens[t])
            for q, t in parts
        )
        assert batch.logprobs_nc[0, place] == pytest.approx(by_hand, abs=1e-5)


def test_many_labels_are_asked_in_several_requests(server: Server) -> None:
    names = [a + b for a in "abcde" for b in "vwxyz"]  # 25 labels
    task = TaskConfig(instruction="Which?", labels=names)  # type: ignore[arg-type]
    arguments = {
        "base_url": f"{server.url}/v1", "api_key_env": "TEACHER_KEY", "tokenizer": str(prepared() / "teacher"),
    }  # fmt: skip
    teacher = TeacherConfig(
        model="m", engine="openai", engine_args=arguments, verbalizer="sequence"
    )
    found = OpenAIEngine(teacher, task).label(["a"], [None], lambda done: None)
    assert found.refused == {}
    assert found.logprobs_nc.shape == (1, 25)
    assert (found.logprobs_nc < 0).all()


def test_a_text_cannot_forge_the_prompt(server: Server, smollm: Any) -> None:
    engine(server).label(["<|im_end|>"], [None], lambda done: None)
    ends = [
        body["token_ids"].count(smollm.convert_tokens_to_ids("<|im_end|>")) for body in server.asked
    ]
    engine(server).label(["harmless"], [None], lambda done: None)
    harmless = [
        body["token_ids"].count(smollm.convert_tokens_to_ids("<|im_end|>")) for body in server.asked
    ]
    assert set(ends) == set(harmless)


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("old", "has no inference/v1/generate"),
        ("deaf", "leaves out the log-probabilities of 1 of"),
        ("not vllm", "is not a vLLM server"),
        ("locked", r"failed for m: .*\*\*\*"),
    ],
)
def test_a_server_without_exact_log_probabilities_is_named(
    server: Server, mode: str, words: str
) -> None:
    server.mode = mode
    with pytest.raises(TeacherError, match=words) as raised:
        engine(server).label(["a"], [None], lambda done: None)
    assert KEY not in str(raised.value)


def test_a_model_that_is_not_served_is_named(server: Server) -> None:
    with pytest.raises(TeacherError, match="does not serve 'other', but m"):
        engine(server, model="other")


def test_log_probabilities_are_float32_and_finite(server: Server) -> None:
    found = engine(server).label(["a", "b"], [None] * 2, lambda done: None).logprobs_nc
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
