"""A teacher behind an OpenAI-compatible endpoint.

    teacher: {engine: openai, model: gpt-4.1-mini,
              engine_args: {base_url: https://api.openai.com/v1, concurrency: 64}}

The key is read from the environment of the actors and is written nowhere.
"""

import asyncio
import os
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from llkd.config.explain import explained
from llkd.config.run import Example, TaskConfig, TeacherConfig
from llkd.core.prompts import TEXT_SLOT, chat_turns, instructions
from llkd.core.verbalizers import CODES
from llkd.errors import ConfigError, TeacherError
from llkd.teacher.engine import LabelBatch
from llkd.teacher.examples import NearestExamples

ASSUMED_CHARACTERS_PER_TOKEN = 4
"""The endpoint's tokenizer is not known: `max_text_tokens` is counted in characters, at so many
a token."""
DISTINCT_CHARACTERS = 3
"""Labels that differ within so many characters are taken to differ in their first token."""


class EndpointArguments(BaseModel):
    """`teacher.engine_args` of an endpoint."""

    model_config = ConfigDict(extra="forbid", use_attribute_docstrings=True)

    base_url: str | None = None
    """Where it is; by default OPENAI_BASE_URL, else OpenAI's own."""
    api_key_env: str = "OPENAI_API_KEY"
    """The environment variable that holds the key."""
    concurrency: int = Field(default=32, ge=1)
    """Requests under way at once, by replica."""
    requests_per_minute: float | None = Field(default=None, gt=0)
    """Most requests a minute, by replica."""
    max_retries: int = Field(default=8, ge=0)
    """How often a request is sent again after a time-out, a rate limit or a server's failure,
    each time after a longer wait."""
    timeout: float = Field(default=60.0, gt=0)
    """Seconds that a request may take."""
    top_logprobs: int = Field(default=20, ge=1)
    """Most probable tokens asked for. A label that is not among them gets the least of their
    log-probabilities: it cannot have more."""


class OpenAIEngine:
    """Reads each label off the most probable first tokens of the answer."""

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        try:
            self._arguments = EndpointArguments.model_validate(teacher.engine_args)
        except ValidationError as error:
            problems = "\n  ".join(explained(EndpointArguments, error))
            raise ConfigError(f"teacher.engine_args of the endpoint:\n  {problems}") from None
        self._key = os.environ.get(self._arguments.api_key_env)
        if not self._key:
            raise TeacherError(
                f"The endpoint's key is read from the environment variable "
                f"{self._arguments.api_key_env}, which is not set where the teacher runs"
            )
        self._teacher, self._task = teacher, task
        self.answers, self._codes = answers_of(teacher, task)
        source = task.examples_from
        self._nearest = None if source is None else NearestExamples(source, task)

    def label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        """See Engine.label.

        Raises:
            TeacherError: the endpoint does not let us in, or does not answer.
        """
        return asyncio.run(self._label(texts, progress))

    async def _label(self, texts: Sequence[str], progress: Callable[[int], None]) -> LabelBatch:
        import openai

        arguments = self._arguments
        logprobs_nc = np.zeros((len(texts), len(self.answers)), dtype=np.float32)
        refused: dict[int, str] = {}
        gate, pace, done, put = asyncio.Semaphore(arguments.concurrency), _Pace(arguments), 0, 0
        client = openai.AsyncOpenAI(
            base_url=arguments.base_url, api_key=self._key, timeout=arguments.timeout,
            max_retries=arguments.max_retries,
        )  # fmt: skip

        nearest = [[] for _ in texts] if self._nearest is None else self._nearest.of(texts)

        async def one(row: int, text: str) -> None:
            nonlocal done, put
            async with gate:
                await pace.wait()
                try:
                    messages = self._messages(text, nearest[row])
                    logprobs_nc[row], tokens = await self._ask(client, messages)
                    put += tokens
                except (openai.BadRequestError, openai.UnprocessableEntityError):
                    refused[row] = "refused_by_engine"
            done += 1
            progress(done)

        async with client:
            try:
                async with asyncio.TaskGroup() as tasks:
                    for row, text in enumerate(texts):
                        tasks.create_task(one(row, text))
            except BaseExceptionGroup as group:
                first = group.exceptions[0]
                if isinstance(first, openai.OpenAIError):
                    raise TeacherError(self._explain(first)) from None
                raise first from None
        return LabelBatch(logprobs_nc, refused, put or None)

    async def _ask(self, client: Any, messages: list[dict[str, str]]) -> tuple[np.ndarray, int]:
        """Log-probabilities of the labels, shape (C,), and the prompt's tokens; 0 if not told."""
        answer = await client.chat.completions.create(
            model=self._teacher.model, messages=messages, max_tokens=1,
            temperature=0.0, logprobs=True, top_logprobs=self._arguments.top_logprobs,
        )  # fmt: skip
        content = answer.choices[0].logprobs and answer.choices[0].logprobs.content
        if not content:
            raise TeacherError(
                f"The endpoint answers for {self._teacher.model} without "
                "log-probabilities, from which LLKD reads the confidence",
                "Use another model or endpoint.",
            )
        top = [(entry.token, entry.logprob) for entry in content[0].top_logprobs]
        return read_answers(top, self.answers), answer.usage.prompt_tokens if answer.usage else 0

    def _messages(self, text: str, nearest: Sequence[Example]) -> list[dict[str, str]]:
        task, examples = self._task, [*self._task.examples, *nearest]
        spoken = dict(zip(task.label_names, self.answers, strict=True))
        turns = chat_turns(
            instructions(task.instruction, task.labels, self._codes),
            [spoken[example.label] for example in examples],
        )
        most = self._teacher.max_text_tokens * ASSUMED_CHARACTERS_PER_TOKEN
        texts = iter([*(example.text[:most] for example in examples), text[:most]])
        return [
            {
                "role": turn.role,
                "content": turn.content.replace(TEXT_SLOT, defused(next(texts)))
                if TEXT_SLOT in turn.content
                else turn.content,
            }
            for turn in turns
        ]

    def _explain(self, error: BaseException) -> str:
        text = str(error).replace(str(self._key), "***")
        where = self._arguments.base_url or "OpenAI"
        return f"The endpoint {where} failed for {self._teacher.model}: {text}"


class _Pace:
    """Lets requests pass at a steady rate."""

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
    """(what the model answers for each label, the codes if it is codes).

    Raises:
        ConfigError: `sequence` is asked for, which needs more than an endpoint tells.
    """
    wanted = teacher.verbalizer
    if wanted == "sequence":
        raise ConfigError(
            "teacher.verbalizer sequence needs log-probabilities of chosen tokens, which "
            "an endpoint does not give",
            "Use word, code or auto.",
        )
    if wanted == "auto":
        starts = {name[:DISTINCT_CHARACTERS].casefold() for name in task.labels}
        wanted = "word" if len(starts) == len(task.labels) else "code"
    if wanted == "word":
        return task.label_names, None
    codes = dict(zip(task.labels, CODES, strict=False))
    return list(codes.values()), codes


def read_answers(top: Sequence[tuple[str, float]], answers: Sequence[str]) -> np.ndarray:
    """Log-probability of each of C answers from the most probable first tokens: shape (C,).

    A token counts for the answer that it is, or else for the only one that it begins. What no
    token counts for gets the least log-probability of all: it cannot have more.

    Args:
        top: (token, log-probability) pairs.
        answers: C strings.
    """
    logprob_c = np.full(len(answers), -np.inf)
    folded = [answer.casefold() for answer in answers]
    for token, logprob in top:
        said = token.strip().casefold()
        begun = [i for i, answer in enumerate(folded) if said and answer.startswith(said)]
        exact = [i for i in begun if folded[i] == said]
        if exact or len(begun) == 1:
            place = (exact or begun)[0]
            logprob_c[place] = np.logaddexp(logprob_c[place], logprob)
    least = min(logprob for _, logprob in top)
    return np.where(np.isneginf(logprob_c), least, logprob_c).astype(np.float32)


_MARKER = re.compile(r"<(?=[|/\w])|\[(?=/?[A-Z_]+\])")


def defused(text: str) -> str:
    """The text with a space inside whatever may be a marker of the model's prompt format.

    An endpoint renders the conversation itself, and reads `<|im_end|>` in a text as the end of it.
    """
    return _MARKER.sub(lambda match: f"{match.group()} ", text)
