"""Exact log-probabilities of all labels from a vLLM server.

Prompts are sent as token ids, built as for the engine `vllm`, so that no text can forge the prompt's structure, and the
server is asked for the log-probabilities of the labels' tokens.
"""

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from llkd.config.run import TaskConfig, TeacherConfig
from llkd.errors import TeacherError
from llkd.teacher.prompting import make_prompter

PATH = "inference/v1/generate"
"""Of vLLM's API for token ids, beside its `v1`."""
TOKENS_AT_ONCE = 19
"""Tokens asked for in a request, less than the 20 that a server allows by default (`--max-logprobs`)."""


class ExactTokens:
    """Asks a vLLM server every question about a text; see Asker."""

    def __init__(
        self, teacher: TeacherConfig, task: TaskConfig, tokenizer: str, client: Any
    ) -> None:
        """Load the tokenizer, and ask the server for the length of its model's context.

        Args:
            teacher: its model is a name that the server knows.
            task: the labelling task.
            tokenizer: of the model, a directory or a hub name.
            client: of the server, `openai.OpenAI`.

        Raises:
            TeacherError: the tokenizer cannot be loaded, or the server serves another model.
            OpenAIError: the server does not answer.
        """
        from transformers import AutoTokenizer

        try:
            loaded = AutoTokenizer.from_pretrained(
                tokenizer, revision=teacher.revision, trust_remote_code=False
            )
        except (OSError, ValueError) as error:
            raise TeacherError(
                f"teacher.engine_args.tokenizer: cannot load {tokenizer}: {error}"
            ) from error
        self._model = teacher.model
        self.max_model_len = _context_of(teacher.model, client)
        self.prompter = make_prompter(teacher, task, loaded, TOKENS_AT_ONCE)
        self.prompter.room(self.max_model_len)

    def prepared(self, texts: Sequence[str]) -> Sequence[Any]:
        """The tokens of each prompt; None for a text without tokens."""
        return self.prompter.prompts(texts, self.max_model_len)

    async def ask(self, client: Any, prepared: Any) -> tuple[np.ndarray, int]:
        """See Asker."""
        verbalizer, total, answers = self.prompter.verbalizer, 0, []
        for question in verbalizer.questions:
            tokens = [*prepared, *question.path]
            answers.append(await self._one(client, tokens, list(question.tokens)))
            total += len(tokens)
        return verbalizer.logprobs(answers)[0], total

    async def _one(self, client: Any, tokens: list[int], wanted: list[int]) -> np.ndarray:
        """Log-probabilities of the wanted tokens after others: float32, shape (1, T)."""
        import openai

        # vLLM returns as many tokens as are asked for, that which it sampled first: one more is asked for, at the end.
        spare = next(token for token in itertools.count() if token not in wanted)
        asked = [*wanted, spare]
        sampling = {
            "max_tokens": 1, "temperature": 0.0, "logprobs": len(asked), "logprob_token_ids": asked,
        }  # fmt: skip
        body = {"model": self._model, "token_ids": tokens, "sampling_params": sampling}
        try:
            answer: Any = await client.post(_root(client) + PATH, cast_to=object, body=body)
        except openai.NotFoundError as error:
            raise TeacherError(
                f"The endpoint {client.base_url} has no {PATH}, by which exact log-probabilities are read",
                "Use a vLLM server, or remove engine_args.tokenizer.",
            ) from error
        top = answer["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
        found = {entry["token"]: entry["logprob"] for entry in top}
        missing = [token for token in wanted if f"token_id:{token}" not in found]
        if missing:
            raise TeacherError(
                f"The endpoint {client.base_url} leaves out the log-probabilities of {len(missing)} of {len(wanted)} "
                "tokens that were asked for",
                "Use vLLM 0.29 or newer, or remove engine_args.tokenizer.",
            )
        return np.array([[found[f"token_id:{token}"] for token in wanted]], np.float32)


def _root(client: Any) -> str:
    """The server's URL without `v1/`."""
    return str(client.base_url).rstrip("/").removesuffix("v1").rstrip("/") + "/"


def _context_of(model: str, client: Any) -> int:
    """The length in tokens of a served model's context."""
    served = {entry.id: entry for entry in client.models.list()}
    if model not in served:
        raise TeacherError(
            f"The endpoint {client.base_url} does not serve {model!r}, but {', '.join(sorted(served))}",
            "Set teacher.model to one of them.",
        )
    length = getattr(served[model], "max_model_len", None)
    if length is None:
        raise TeacherError(
            f"The endpoint {client.base_url} is not a vLLM server: it does not say how long its context is",
            "Remove engine_args.tokenizer.",
        )
    return int(length)
