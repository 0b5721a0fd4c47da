"""The endpoint engine: against a small server of known answers, and against a real vLLM server."""

import json
import math
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest

from llkd.config.run import TaskConfig, TeacherConfig
from llkd.errors import ConfigError, TeacherError
from llkd.teacher.engines.openai import OpenAIEngine, answers_of, escape_markers, read_answers
from tests.conftest import ROOT
from tests.demo import prepared
from tests.json_server import JSONHandler, JSONServer, running

KEY = "sk-a-secret-of-the-tests"
TASK = TaskConfig(instruction="Which topic?", labels={"sport": "matches", "tech": None})
LOG = math.log


def test_tokens_count_for_the_answer_they_are_or_begin() -> None:
    top = [
        (b"s", LOG(0.4)),
        (b" sport", LOG(0.2)),
        (b" SPORT", LOG(0.02)),
        (b"t", LOG(0.1)),
        (b"x", LOG(0.05)),
        (b"", LOG(0.01)),
    ]
    found = read_answers(top, ["sport", "tech", "trade"])
    # "t" begins two of them and counts for neither; both get the least that was told.
    assert np.exp(found) == pytest.approx([0.62, 0.01, 0.01])


def test_an_exact_token_counts_though_others_begin_with_it() -> None:
    found = read_answers([(b"1", LOG(0.5)), (b"12", LOG(0.3))], ["1", "12"])
    assert np.exp(found) == pytest.approx([0.5, 0.3])


def test_tokens_may_end_within_a_character() -> None:
    whole = "été".encode()
    top = [(whole[:1], LOG(0.5)), ("É".encode(), LOG(0.2)), (b" hiver", LOG(0.2))]
    assert np.exp(read_answers(top, ["été", "hiver"])) == pytest.approx([0.7, 0.2])
    # the first byte of two Cyrillic labels says nothing of which is meant
    both = read_answers([("спорт".encode()[:1], LOG(0.9)), (b"x", LOG(0.1))], ["спорт", "техника"])
    assert np.exp(both) == pytest.approx([0.1, 0.1])


def test_log_probabilities_are_finite() -> None:
    found = read_answers([(b"a", -9999.0), (b"b", -math.inf), (b"c", 1e-9)], ["a", "b", "c", "d"])
    assert found.tolist() == [-100.0, -100.0, 0.0, -100.0]


def test_labels_that_begin_alike_are_said_by_codes() -> None:
    cards = TaskConfig(instruction="?", labels=["card lost", "card stolen"])  # type: ignore[arg-type]
    teacher = TeacherConfig(model="m", engine="openai")
    assert answers_of(teacher, TASK) == (["sport", "tech"], None)
    assert answers_of(teacher, cards)[0] == ["A", "B"]
    with pytest.raises(ConfigError, match="sequence needs log-probabilities of chosen tokens"):
        answers_of(teacher.model_copy(update={"verbalizer": "sequence"}), TASK)


def test_markers_in_a_text_are_taken_apart() -> None:
    assert escape_markers("a <|im_end|> b </s> [INST] c <start_of_turn>") == (
        "a < |im_end|> b < /s> [ INST] c < start_of_turn>"
    )
    assert escape_markers("1 < 2 and [see] <3") == "1 < 2 and [see] < 3"


class Server(JSONServer):
    """Answers by the text: `slow`, `busy` once, `bad`; else "sport" with 0.7, "tech" with 0.2."""

    def __init__(self) -> None:
        super().__init__(Handler)
        self.asked: list[dict[str, Any]] = []
        self.keys: set[str | None] = set()
        self.times: list[float] = []
        self.now, self.most = 0, 0
        self.lock = threading.Lock()


class Handler(JSONHandler):
    server: Server
    protocol_version = "HTTP/1.1"

    def post(self) -> None:
        body = json.loads(self.body())
        text = body["messages"][-1]["content"]
        with self.server.lock:
            self.server.asked.append(body)
            self.server.keys.add(self.headers["Authorization"])
            self.server.times.append(time.monotonic())
            self.server.now += 1
            self.server.most = max(self.server.most, self.server.now)
            tries = sum(text == old["messages"][-1]["content"] for old in self.server.asked)
        time.sleep(0.05)
        status = 200
        if "busy" in text and tries == 1:
            status = 429
        elif "bad" in text:
            status = 400
        elif "locked" in text:
            status = 401
        elif "down" in text:
            status = 503
        top = [{"token": "sport", "logprob": LOG(0.7)}, {"token": "te", "logprob": LOG(0.2)}]
        logprobs = None if "mute" in text else {"content": [{"token": "sport", "logprob": -1.0,
                                                             "top_logprobs": top}]}  # fmt: skip
        usage = {"prompt_tokens": 7, "completion_tokens": 1, "total_tokens": 8}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [
            {"index": 0, "finish_reason": "length", "logprobs": logprobs,
             "message": {"role": "assistant", "content": "sport"}}],
            "usage": None if "untold" in text else usage}  # fmt: skip
        error = {"error": {"message": f"no, {self.headers['Authorization']}"}}
        with self.server.lock:
            self.server.now -= 1
        headers = {"Retry_After": "0.1"} if status == 429 else {}
        self.answer(answer if status == 200 else error, status, **headers)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("TEACHER_KEY", KEY)
    with running(Server()) as server:
        yield server


def engine(server: Server, **arguments: Any) -> OpenAIEngine:
    url = f"{server.url}/v1"
    settings = {"base_url": url, "api_key_env": "TEACHER_KEY", "max_retries": 2, **arguments}
    return OpenAIEngine(TeacherConfig(model="m", engine="openai", engine_args=settings), TASK)


def ask(engine: OpenAIEngine, texts: list[str]) -> Any:
    return engine.label(texts, [None] * len(texts), lambda done: None)


def test_variables_of_the_chat_template_are_sent_if_there_are_any(server: Server) -> None:
    url = f"{server.url}/v1"
    settings = {"base_url": url, "api_key_env": "TEACHER_KEY"}
    variables = {"enable_thinking": False}
    config = TeacherConfig(
        model="m", engine="openai", engine_args=settings, chat_template_kwargs=variables
    )
    ask(OpenAIEngine(config, TASK), ["one"])
    assert server.asked[0]["chat_template_kwargs"] == variables


def test_every_text_is_asked_once_and_busy_ones_again(server: Server) -> None:
    texts = ["one", "busy", "bad", "<|im_end|>"]
    batch = ask(engine(server), texts)
    assert batch.refused == {2: "refused_by_engine"}
    assert np.exp(batch.logprobs_nc[[0, 1, 3]]) == pytest.approx(np.array([[0.7, 0.2]] * 3))
    asked = [body["messages"][-1]["content"] for body in server.asked]
    assert sorted(asked) == sorted(
        [f"Text: {t}\nLabel:" for t in ("one", "busy", "busy", "bad", "< |im_end|>")]
    )
    assert server.keys == {f"Bearer {KEY}"}
    assert server.asked[0]["max_tokens"] == 1
    assert server.asked[0]["top_logprobs"] == 20
    assert "chat_template_kwargs" not in server.asked[0]
    assert batch.tokens == 3 * 7
    assert ask(engine(server), ["untold"]).tokens is None


def test_no_more_requests_at_once_than_allowed(server: Server) -> None:
    ask(engine(server, concurrency=3), [f"text {i}" for i in range(12)])
    assert server.most == 3


def test_no_more_requests_a_minute_than_allowed(server: Server) -> None:
    ask(engine(server, requests_per_minute=1200), [f"text {i}" for i in range(8)])
    assert server.times[-1] - server.times[0] >= 7 * 0.05 * 0.9


@pytest.mark.parametrize(
    ("text", "message"),
    [("locked", "failed for m"), ("down", "failed for m"), ("mute", "without log-probabilities")],
)
def test_an_endpoint_that_does_not_answer_fails_without_telling_the_key(
    server: Server, text: str, message: str
) -> None:
    with pytest.raises(TeacherError, match=message) as caught:
        ask(engine(server, max_retries=1), ["one", text])
    assert KEY not in str(caught.value)


def test_settings_and_key_are_checked_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    with pytest.raises(TeacherError, match="NO_SUCH_KEY, which is not set"):
        OpenAIEngine(TeacherConfig(model="m", engine_args={"api_key_env": "NO_SUCH_KEY"}), TASK)
    arguments = {"concurency": 3, "headers": {"x": KEY}, "timeout": 0}
    with pytest.raises(ConfigError) as caught:
        OpenAIEngine(TeacherConfig(model="m", engine_args=arguments), TASK)
    assert "concurency: no such setting; did you mean 'concurrency'?" in str(caught.value)
    assert "timeout: must be greater than 0 (it is 0)" in str(caught.value)
    assert KEY not in str(caught.value)


@contextmanager
def vllm_server() -> Iterator[str]:
    """A real vLLM server of the demo's teacher, on the loopback; its base URL."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(prepared() / "teacher"),
         "--host", "127.0.0.1", "--port", str(port), "--served-model-name", "smollm",
         "--max-model-len", "1024", "--enforce-eager", "--dtype", "float32"],
        env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind",
             "VLLM_HOST_IP": "127.0.0.1", "VLLM_NO_USAGE_STATS": "1"},
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        start_new_session=True,
    )  # fmt: skip
    said: list[str] = []
    threading.Thread(target=lambda: said.extend(process.stdout or []), daemon=True).start()
    try:
        while not _healthy(port):
            assert process.poll() is None, "".join(said)[-3000:]
            time.sleep(0.5)
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        os.killpg(process.pid, signal.SIGKILL)  # with its engine, which would outlive it
        process.wait()


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=60) as answer:
            return bool(answer.status == 200)
    except OSError:
        return False


@pytest.mark.slow
def test_a_real_endpoint_agrees_with_the_model_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from llkd.config.load import load_config
    from llkd.teacher.engines.transformers import TransformersEngine

    monkeypatch.setenv("TEACHER_KEY", KEY)
    config = load_config("jobs/configs/bbc.yaml")
    texts = ["Shares fell.", "The match ended in a draw.", "The minister resigned.", "New phone."]
    arguments = {"dtype": "float32"}
    direct = TransformersEngine(
        config.teacher.model_copy(update={"engine_args": arguments}), config.task
    ).label(texts, [None] * 4, lambda done: None)
    sequence = config.teacher.model_copy(
        update={"engine_args": arguments, "verbalizer": "sequence"}
    )
    whole = TransformersEngine(sequence, config.task).label(texts, [None] * 4, lambda done: None)
    with vllm_server() as url:
        arguments = {"base_url": url, "api_key_env": "TEACHER_KEY"}
        endpoint = TeacherConfig(
            model="smollm", engine="openai", engine_args=arguments,
            max_text_tokens=config.teacher.max_text_tokens,
        )  # fmt: skip
        answered = ask(OpenAIEngine(endpoint, config.task), texts)
        arguments = {**arguments, "tokenizer": str(prepared() / "teacher")}
        known = endpoint.model_copy(update={"engine_args": arguments})
        exact = ask(OpenAIEngine(known, config.task), texts)
        of_all = known.model_copy(update={"verbalizer": "sequence"})
        of_all_tokens = ask(OpenAIEngine(of_all, config.task), texts)
        other = known.model_copy(update={"model": "another"})
        with pytest.raises(TeacherError, match="does not serve 'another', but smollm"):
            OpenAIEngine(other, config.task)
    assert exact.logprobs_nc == pytest.approx(direct.logprobs_nc, abs=0.02)
    assert of_all_tokens.logprobs_nc == pytest.approx(whole.logprobs_nc, abs=0.02)
    top = direct.logprobs_nc.argmax(axis=1)
    assert answered.refused == {}
    assert answered.logprobs_nc.argmax(axis=1).tolist() == top.tolist()
    rows = np.arange(4)
    assert answered.logprobs_nc[rows, top] == pytest.approx(direct.logprobs_nc[rows, top], abs=0.1)
