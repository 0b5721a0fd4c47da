"""The teacher run by transformers, where vLLM does not run: macOS, old processors.

The same prompts and the same log-probabilities. The prompt's shared beginning is computed once,
as vLLM's prefix cache does.
"""

import copy
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError

from llkd.cluster.hardware import cpu_prefers_bfloat16
from llkd.config.run import TaskConfig, TeacherConfig
from llkd.errors import TeacherError
from llkd.teacher.engine import LabelBatch
from llkd.teacher.prompting import make_prompter

TOKENS_PER_BATCH = 4096
"""Tokens of a batch beside the shared beginning, padding counted."""
DEFAULT_CONTEXT = 2048
"""Tokens a model takes where its config does not say."""


class TransformersEngine:
    """Reads the log-probability of every label after the prompt.

    `teacher.engine_args` are those of `AutoModelForCausalLM.from_pretrained`, and
    `max_model_len` as for vLLM.
    """

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        arguments = dict(teacher.engine_args)
        most = arguments.pop("max_model_len", None)
        try:
            trusted = bool(arguments.pop("trust_remote_code", False))
            tokenizer = AutoTokenizer.from_pretrained(
                teacher.model, revision=teacher.revision, trust_remote_code=trusted
            )
            self._model = AutoModelForCausalLM.from_pretrained(
                teacher.model, revision=teacher.revision, trust_remote_code=trusted,
                **{**arguments, "use_safetensors": True},  # whatever the config says
            )  # fmt: skip
            if teacher.lora is not None:
                self._model.load_adapter(teacher.lora)
        except (OSError, ValueError, TypeError, ImportError, SafetensorError) as error:
            raise TeacherError(f"transformers cannot load {teacher.model}: {error}") from error
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if "device_map" not in arguments:
            self._model.to(self._device)
        self._model.eval()
        context = getattr(self._model.config, "max_position_embeddings", DEFAULT_CONTEXT)
        self.max_model_len = most or context
        self._tokenizer = tokenizer
        self.use(teacher, task)

    def use(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        """Label by another task, or in another way, with the model that is loaded.

        Raises:
            TeacherError: the labels cannot be told apart, or the prompt does not fit.
        """
        self._task = task
        self.prompter = make_prompter(teacher, task, self._tokenizer)
        self.prompter.room(self.max_model_len)

    @staticmethod
    def machine_arguments(teacher: TeacherConfig) -> dict[str, Any]:
        """The number format that is fastest here; asked once a run."""
        if "dtype" in teacher.engine_args:
            return {}
        if torch.cuda.is_available():
            return {"dtype": "bfloat16" if torch.cuda.is_bf16_supported() else "float16"}
        return {"dtype": "bfloat16" if cpu_prefers_bfloat16() else "float32"}

    def label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        """See Engine.label."""
        prompts = self.prompter.prompts(texts, self.max_model_len)
        refused = {row: "no_tokens" for row, prompt in enumerate(prompts) if prompt is None}
        known = [prompt for prompt in prompts if prompt is not None]
        if not known:
            return LabelBatch(np.zeros((len(texts), len(self._task.labels)), np.float32), refused)
        begin = _shared_beginning(known)
        with torch.inference_mode():
            inputs = torch.tensor([known[0][:begin]], device=self._device)
            shared = self._model(inputs, use_cache=True, logits_to_keep=1).past_key_values
        questions = self.prompter.verbalizer.questions
        rests = [
            (row, number, [*prompt[begin:], *question.path])
            for row, prompt in enumerate(prompts)
            if prompt is not None
            for number, question in enumerate(questions)
        ]
        rests.sort(key=lambda rest: -len(rest[2]))  # little is padded among texts of like length
        answers = [
            np.zeros((len(texts), len(question.tokens)), dtype=np.float32) for question in questions
        ]
        done = 0
        while done < len(rests):
            rows = max(TOKENS_PER_BATCH // len(rests[done][2]), 1)
            batch = rests[done : done + rows]
            logprobs_bv = self._next_token_logprobs(
                shared, begin, [tokens for _, _, tokens in batch]
            )
            for (row, number, _), logprobs_v in zip(batch, logprobs_bv, strict=True):
                answers[number][row] = logprobs_v[list(questions[number].tokens)].numpy()
            done += len(batch)
            progress(done // len(questions))
        put = sum(begin + len(tokens) for _, _, tokens in rests)
        return LabelBatch(self.prompter.verbalizer.logprobs(answers), refused, put)

    def _next_token_logprobs(
        self, shared: Any, begin: int, rests: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Log-probabilities of the token after the shared beginning and each rest: (B, V)."""
        longest = max(map(len, rests))
        tokens_bt = torch.zeros((len(rests), longest), dtype=torch.long)
        position_bt = torch.zeros((len(rests), longest), dtype=torch.long)
        mask_bt = torch.zeros((len(rests), begin + longest), dtype=torch.long)
        mask_bt[:, :begin] = 1
        for i, rest in enumerate(rests):  # padded before the rest, so that all end together
            tokens_bt[i, longest - len(rest) :] = torch.tensor(rest)
            position_bt[i, longest - len(rest) :] = torch.arange(begin, begin + len(rest))
            mask_bt[i, begin + longest - len(rest) :] = 1
        with torch.inference_mode():
            cache = copy.deepcopy(shared)
            cache.batch_repeat_interleave(len(rests))
            logits_b1v = self._model(
                tokens_bt.to(self._device),
                attention_mask=mask_bt.to(self._device),
                position_ids=position_bt.to(self._device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            return torch.log_softmax(logits_b1v[:, -1].float(), dim=-1).cpu()


def _shared_beginning(prompts: Sequence[list[int]]) -> int:
    """Tokens with which all prompts begin; each keeps at least one of its own."""
    first, last = min(prompts), max(prompts)
    most = min(map(len, prompts)) - 1
    pairs = zip(first[:most], last[:most], strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), most)
