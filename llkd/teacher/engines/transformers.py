"""A teacher served by transformers, for machines without vLLM: macOS, old processors.

Prompts and log-probabilities are those of the vLLM engine. The shared prefix of the prompts is
computed once, as by vLLM's prefix cache.
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
"""Padded tokens per batch, without the shared prefix."""
DEFAULT_CONTEXT = 2048
"""Context length of a model whose config does not state it."""


class TransformersEngine:
    """Reads the log-probability of every label after the prompt.

    `teacher.engine_args` are the arguments of `AutoModelForCausalLM.from_pretrained`, and
    `max_model_len` as for vLLM.
    """

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        from transformers import AutoModelForCausalLM, AutoTokenizer

        arguments = dict(teacher.engine_args)
        max_model_len = arguments.pop("max_model_len", None)
        try:
            trusted = bool(arguments.pop("trust_remote_code", False))
            tokenizer = AutoTokenizer.from_pretrained(
                teacher.model, revision=teacher.revision, trust_remote_code=trusted
            )
            self._model = AutoModelForCausalLM.from_pretrained(
                teacher.model, revision=teacher.revision, trust_remote_code=trusted,
                **{**arguments, "use_safetensors": True},  # cannot be overridden
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
        self.max_model_len = max_model_len or context
        self._tokenizer = tokenizer
        self.use(teacher, task)

    def use(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        """Switch to another task or other prompt settings, with the loaded model.

        Raises:
            TeacherError: the labels cannot be distinguished, or the prompt does not fit.
        """
        self._task = task
        self.prompter = make_prompter(teacher, task, self._tokenizer)
        self.prompter.room(self.max_model_len)

    @staticmethod
    def machine_arguments(teacher: TeacherConfig) -> dict[str, Any]:
        """The number format that is fastest on this machine; called once per run."""
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
        usable = [prompt for prompt in prompts if prompt is not None]
        if not usable:
            return LabelBatch(np.zeros((len(texts), len(self._task.labels)), np.float32), refused)
        prefix = _shared_prefix(usable)
        with torch.inference_mode():
            inputs = torch.tensor([usable[0][:prefix]], device=self._device)
            cache = self._model(inputs, use_cache=True, logits_to_keep=1).past_key_values
        questions = self.prompter.verbalizer.questions
        requests = [
            (row, number, [*prompt[prefix:], *question.path])
            for row, prompt in enumerate(prompts)
            if prompt is not None
            for number, question in enumerate(questions)
        ]
        requests.sort(key=lambda request: -len(request[2]))  # similar lengths need little padding
        answers = [
            np.zeros((len(texts), len(question.tokens)), dtype=np.float32) for question in questions
        ]
        done = 0
        while done < len(requests):
            rows = max(TOKENS_PER_BATCH // len(requests[done][2]), 1)
            batch = requests[done : done + rows]
            logprobs_bv = self._next_token_logprobs(
                cache, prefix, [tokens for _, _, tokens in batch]
            )
            for (row, number, _), logprobs_v in zip(batch, logprobs_bv, strict=True):
                answers[number][row] = logprobs_v[list(questions[number].tokens)].numpy()
            done += len(batch)
            progress(done // len(questions))
        total = sum(prefix + len(tokens) for _, _, tokens in requests)
        return LabelBatch(self.prompter.verbalizer.logprobs(answers), refused, total)

    def _next_token_logprobs(
        self, shared: Any, prefix: int, suffixes: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Log-probabilities of the token after the shared prefix and each suffix: (B, V)."""
        longest = max(map(len, suffixes))
        tokens_bt = torch.zeros((len(suffixes), longest), dtype=torch.long)
        position_bt = torch.zeros((len(suffixes), longest), dtype=torch.long)
        mask_bt = torch.zeros((len(suffixes), prefix + longest), dtype=torch.long)
        mask_bt[:, :prefix] = 1
        for i, suffix in enumerate(suffixes):  # padded on the left: all end at the same position
            tokens_bt[i, longest - len(suffix) :] = torch.tensor(suffix)
            position_bt[i, longest - len(suffix) :] = torch.arange(prefix, prefix + len(suffix))
            mask_bt[i, prefix + longest - len(suffix) :] = 1
        with torch.inference_mode():
            cache = copy.deepcopy(shared)
            cache.batch_repeat_interleave(len(suffixes))
            logits_b1v = self._model(
                tokens_bt.to(self._device),
                attention_mask=mask_bt.to(self._device),
                position_ids=position_bt.to(self._device),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            ).logits
            return torch.log_softmax(logits_b1v[:, -1].float(), dim=-1).cpu()


def _shared_prefix(prompts: Sequence[list[int]]) -> int:
    """Length of the common prefix of all prompts; leaves each at least one token of its own."""
    first, last = min(prompts), max(prompts)
    limit = min(map(len, prompts)) - 1
    pairs = zip(first[:limit], last[:limit], strict=True)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), limit)
