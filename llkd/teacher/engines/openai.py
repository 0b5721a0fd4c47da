"""A teacher behind an OpenAI-compatible endpoint.

    teacher: {engine: openai, model: gpt-4.1-mini,
              engine_args: {base_url: https://api.openai.com/v1, concurrency: 64}}

The key is read from the environment of the actors and never written.
"""

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from llkd.config.run import Example, TaskConfig, TeacherConfig
from llkd.core.prompts import TEXT_SLOT, chat_turns, instructions
from llkd.core.verbalizers import CODES
from llkd.errors import ConfigError, TeacherError
from llkd.teacher.engine import LabelBatch, parse_arguments
from llkd.teacher.engines.exact_tokens import ExactTokens
from llkd.teacher.examples import NearestExamples

ASSUMED_CHARACTERS_PER_TOKEN = 4
"""Converts `max_text_tokens` to characters, because the endpoint's tokenizer is unknown."""
LOWEST = -100.0
"""Lower bound of a log-probability; some endpoints write -9999 or -inf."""
DISTINCT_CHARACTERS = 3
"""Labels that differ in this many first characters are assumed to differ in their first token."""


class EndpointArguments(BaseModel):
    """`teacher.engine_args` of an endpoint."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    base_url: str | None = None
    """URL of the endpoint; by default OPENAI_BASE_URL, else OpenAI's."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key."""
    concurrency: int = Field(default=32, ge=1)
    """Maximum concurrent requests of a replica."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Maximum requests per minute of a replica."""
    max_retries: int = Field(default=8, ge=0)
    """Maximum retries of a request after a timeout, a rate limit or a server error, with increasing
    delays."""
    timeout: float = Field(default=60.0, gt=0)
    """Timeout of a request in seconds."""
    top_logprobs: int = Field(default=20, ge=1)
    """Number of most probable tokens to request. A label that is not among them gets the lowest of
    their log-probabilities, an upper bound of its own."""
    tokenizer: str | None = None
    """The model's tokenizer, a directory or a hub name, if the endpoint is vLLM's: the log-probabilities of all
    labels are then exact, and `verbalizer: sequence` works."""


class Asker(Protocol):
    """How an endpoint is asked for the labels' log-probabilities."""

    def prepared(self, texts: Sequence[str]) -> Sequence[Any]:
        """What is sent for each text; None for one that cannot be asked."""

    async def ask(self, client: Any, prepared: Any) -> tuple[np.ndarray, int]:
        """Log-probabilities of the labels, shape (C,), and the prompt's tokens; 0 if unknown."""


class OpenAIEngine:
    """Asks an endpoint about many texts at once."""

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        import openai

        self._arguments = parse_arguments(EndpointArguments, teacher, "endpoint")
        self._key = os.environ.get(self._arguments.api_key_env)
        if not self._key:
            raise TeacherError(
                f"The endpoint's key is read from the environment variable "
                f"{self._arguments.api_key_env}, which is not set where the teacher runs"
            )
        self._teacher, self._task = teacher, task
        if self._arguments.tokenizer is None:
            self._asker: Asker = TopTokens(teacher, task, self._arguments.top_logprobs)
            return
        try:
            exact = ExactTokens(teacher, task, self._arguments.tokenizer, self._client("OpenAI"))
        except openai.OpenAIError as error:
            raise TeacherError(self._explain(error)) from None
        self._asker, self.prompter, self.max_model_len = exact, exact.prompter, exact.max_model_len

    def _client(self, kind: str) -> Any:
        import openai

        return getattr(openai, kind)(
            base_url=self._arguments.base_url, api_key=self._key, timeout=self._arguments.timeout,
            max_retries=self._arguments.max_retries,
        )  # fmt: skip

    def label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        """See Engine.label.

        Raises:
            TeacherError: the endpoint denies access or does not answer.
        """
        return asyncio.run(self._label(texts, progress))

    async def _label(self, texts: Sequence[str], progress: Callable[[int], None]) -> LabelBatch:
        import openai

        arguments, asker = self._arguments, self._asker
        logprobs_nc = np.zeros((len(texts), len(self._task.labels)), dtype=np.float32)
        prepared = asker.prepared(texts)
        refused = {row: "no_tokens" for row, one in enumerate(prepared) if one is None}
        gate, pace, done, total = asyncio.Semaphore(arguments.concurrency), _Pace(arguments), 0, 0
        client = self._client("AsyncOpenAI")

        async def ask(row: int) -> None:
            nonlocal done, total
            async with gate:
                await pace.wait()
                try:
                    logprobs_nc[row], tokens = await asker.ask(client, prepared[row])
                    total += tokens
                except (openai.BadRequestError, openai.UnprocessableEntityError):
                    refused[row] = "refused_by_engine"
            done += 1
            progress(done)

        async with client:
            try:
                async with asyncio.TaskGroup() as tasks:
                    for row in range(len(texts)):
                        if row not in refused:
                            tasks.create_task(ask(row))
            except BaseExceptionGroup as group:
                first = group.exceptions[0]
                if isinstance(first, openai.OpenAIError):
                    raise TeacherError(self._explain(first)) from None
                raise first from None
        return LabelBatch(logprobs_nc, refused, total or None)

    def _explain(self, error: BaseException) -> str:
        text = str(error).replace(str(self._key), "***")
        where = self._arguments.base_url or "OpenAI"
        return f"The endpoint {where} failed for {self._teacher.model}: {text}"


class TopTokens:
    """Reads the labels' log-probabilities from the most probable first tokens of the answer."""

    def __init__(self, teacher: TeacherConfig, task: TaskConfig, top_logprobs: int) -> None:
        """`top_logprobs` is the number of tokens to request."""
        self._teacher, self._task, self._top_logprobs = teacher, task, top_logprobs
        self.answers, self._codes = answers_of(teacher, task)
        variables = teacher.chat_template_kwargs
        self._extra = {"chat_template_kwargs": variables} if variables else None
        source = task.examples_from
        self._nearest = None if source is None else NearestExamples(source, task)

    def prepared(self, texts: Sequence[str]) -> Sequence[Any]:
        """The conversation about each text."""
        nearest = [[] for _ in texts] if self._nearest is None else self._nearest.of(texts)
        return [self._messages(*pair) for pair in zip(texts, nearest, strict=True)]

    async def ask(self, client: Any, prepared: Any) -> tuple[np.ndarray, int]:
        """See Asker."""
        answer = await client.chat.completions.create(
            model=self._teacher.model, messages=prepared, max_tokens=1,
            temperature=0.0, logprobs=True, top_logprobs=self._top_logprobs,
            extra_body=self._extra,
        )  # fmt: skip
        content = answer.choices[0].logprobs and answer.choices[0].logprobs.content
        if not content:
            raise TeacherError(
                f"The endpoint answers for {self._teacher.model} without "
                "log-probabilities, from which LLKD reads the confidence",
                "Use another model or endpoint.",
            )
        top = [
            (bytes(entry.bytes) if entry.bytes else entry.token.encode(), entry.logprob)
            for entry in content[0].top_logprobs
        ]
        return read_answers(top, self.answers), answer.usage.prompt_tokens if answer.usage else 0

    def _messages(self, text: str, nearest: Sequence[Example]) -> list[dict[str, str]]:
        task, examples = self._task, [*self._task.examples, *nearest]
        answer_of = dict(zip(task.label_names, self.answers, strict=True))
        turns = chat_turns(
            instructions(task.instruction, task.labels, self._codes),
            [answer_of[example.label] for example in examples],
        )
        limit = self._teacher.max_text_tokens * ASSUMED_CHARACTERS_PER_TOKEN
        texts = iter([*(example.text[:limit] for example in examples), text[:limit]])
        return [
            {
                "role": turn.role,
                "content": turn.content.replace(TEXT_SLOT, escape_markers(next(texts)))
                if TEXT_SLOT in turn.content
                else turn.content,
            }
            for turn in turns
        ]


class _Pace:
    """Limits the rate of requests."""

    def __init__(self, arguments: EndpointArguments) -> None:
        per_minute = arguments.requests_per_minute
        self._gap = 60.0 / per_minute if per_minute else 0.0
        self._next = 0.0

    async def wait(self) -> None:
        """Wait for this request's turn."""
        if self._gap:
            now = asyncio.get_running_loop().time()
            turn = max(self._next, now)
            self._next = turn + self._gap
            await asyncio.sleep(turn - now)


def answers_of(teacher: TeacherConfig, task: TaskConfig) -> tuple[list[str], dict[str, str] | None]:
    """(the model's answer for each label, the code of each label or None).

    Raises:
        ConfigError: the verbalizer is `sequence`, which endpoints do not support.
    """
    wanted = teacher.verbalizer
    if wanted == "sequence":
        raise ConfigError(
            "teacher.verbalizer sequence needs log-probabilities of chosen tokens, which "
            "an endpoint does not return",
            "Use word, code or auto; or, if the endpoint is vLLM's, set engine_args.tokenizer.",
        )
    if wanted == "auto":
        starts = {name[:DISTINCT_CHARACTERS].casefold() for name in task.labels}
        wanted = "word" if len(starts) == len(task.labels) else "code"
    if wanted == "word":
        return task.label_names, None
    codes = dict(zip(task.labels, CODES, strict=False))
    return list(codes.values()), codes


def read_answers(top: Sequence[tuple[bytes, float]], answers: Sequence[str]) -> np.ndarray:
    """Log-probability of each of C answers from the most probable first tokens: shape (C,), finite.

    A token counts for the answer that it equals, or else for the only one that it is a prefix of, in bytes: a
    token may end within a character. An answer without a token gets the lowest log-probability of all
    tokens, an upper bound of its own.

    Args:
        top: (UTF-8 bytes of a token, log-probability) pairs.
        answers: C strings.
    """
    logprob_c = np.full(len(answers), -np.inf)
    forms = [
        {form(answer).encode() for form in (str, str.lower, str.upper, str.capitalize)}
        for answer in answers
    ]
    for token, logprob in top:
        prefix = token.strip()
        begun = [
            i for i, found in enumerate(forms)
            if prefix and any(form.startswith(prefix) for form in found)
        ]  # fmt: skip
        exact = [i for i in begun if prefix in forms[i]]
        if exact or len(begun) == 1:
            place = (exact or begun)[0]
            logprob_c[place] = np.logaddexp(logprob_c[place], logprob)
    lowest = min(logprob for _, logprob in top)
    found_c = np.where(np.isneginf(logprob_c), lowest, logprob_c)
    return np.clip(found_c, LOWEST, 0.0).astype(np.float32)


_MARKER = re.compile(r"<(?=[|/\w])|\[(?=/?[A-Z_]+\])")


def escape_markers(text: str) -> str:
    """The text with a space inside every possible marker of the model's prompt format.

    An endpoint renders the conversation itself, and would take `<|im_end|>` in a text as a marker.
    """
    return _MARKER.sub(lambda match: f"{match.group()} ", text)
