"""The teacher served by vLLM, inside the process of its Ray actor."""

import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from llkd.config import TaskConfig, TeacherConfig
from llkd.errors import TeacherError
from llkd.teacher.engine import LabelBatch
from llkd.teacher.prompting import PromptTemplate, encode_texts, make_template

CPU_KV_CACHE_GIB = 2
"""Key-value cache on a CPU unless VLLM_CPU_KVCACHE_SPACE says otherwise. A prompt is read once
and answered with one token, so that little is ever held."""


class VLLMEngine:
    """Reads the log-probability of every label's first token after the prompt.

    The labels' tokens are asked for by id (`logprob_token_ids`): a list of the most probable
    tokens would silently lose labels.
    """

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        _prepare_platform()
        from vllm import LLM, SamplingParams

        try:
            self._llm = LLM(
                model=teacher.model,
                revision=teacher.revision,
                **{"disable_log_stats": True, "enable_prefix_caching": True, **teacher.engine_args},
            )
        except Exception as error:  # vLLM raises many kinds
            raise TeacherError(f"vLLM cannot load {teacher.model}: {error}") from error
        self._tokenizer = self._llm.get_tokenizer()
        self._template = make_template(teacher, task, self._tokenizer)
        self._max_text_tokens = _text_budget(
            teacher, self._template, self._llm.llm_engine.model_config.max_model_len
        )
        self._params = SamplingParams(
            max_tokens=1,
            temperature=0.0,
            logprob_token_ids=list(self._template.label_tokens),
            flat_logprobs=True,
            detokenize=False,
        )
        # Computes the shared prefix, so that every shard afterwards meets the same engine.
        self._generate([self._template.prompt([])], lambda done: None)

    @staticmethod
    def machine_arguments(teacher: TeacherConfig) -> dict[str, Any]:
        """Engine arguments that are best found by measuring; asked once a run.

        On a CPU the number format, by what is faster; on a GPU vLLM's own choice is right.
        """
        import torch

        from llkd.hardware import cpu_prefers_bfloat16

        if torch.cuda.is_available() or "dtype" in teacher.engine_args:
            return {}
        return {"dtype": "bfloat16" if cpu_prefers_bfloat16() else "float32"}

    def label(self, texts: Sequence[str], progress: Callable[[int], None]) -> LabelBatch:
        """See Engine.label."""
        text_tokens = encode_texts(self._tokenizer, texts, self._max_text_tokens)
        refused = {i: "no_tokens" for i, tokens in enumerate(text_tokens) if not tokens}
        wanted = [i for i in range(len(texts)) if i not in refused]
        logprobs_nc = np.zeros((len(texts), len(self._template.label_tokens)), dtype=np.float32)
        if wanted:
            prompts = [self._template.prompt(text_tokens[i]) for i in wanted]
            logprobs_nc[wanted] = self._generate(prompts, progress)
        return LabelBatch(logprobs_nc, refused)

    def _generate(
        self, prompts: Sequence[Sequence[int]], progress: Callable[[int], None]
    ) -> np.ndarray:
        """Log-probabilities of the label tokens after each prompt: float32, shape (N, C)."""
        self._llm.enqueue(
            [{"prompt_token_ids": list(prompt)} for prompt in prompts],
            self._params,
            use_tqdm=False,
        )
        engine, outputs = self._llm.llm_engine, []
        while engine.has_unfinished_requests():
            outputs += [output for output in engine.step() if output.finished]
            progress(len(outputs))
        outputs.sort(key=lambda output: int(output.request_id))  # the order of the prompts
        rows = []
        for output in outputs:
            first = output.outputs[0].logprobs[0]
            rows.append([first[token].logprob for token in self._template.label_tokens])
        return np.asarray(rows, dtype=np.float32)


def _text_budget(teacher: TeacherConfig, template: PromptTemplate, max_model_len: int) -> int:
    """Tokens of text that fit, at most `teacher.max_text_tokens`."""
    room = max_model_len - template.fixed_tokens - 1  # one for the answer
    if room < 1:
        raise TeacherError(
            f"The prompt without any text has {template.fixed_tokens} tokens, and {teacher.model} "
            f"takes {max_model_len}; shorten the instruction or the examples, or raise "
            "engine_args.max_model_len"
        )
    return min(teacher.max_text_tokens, room)


def _prepare_platform() -> None:
    """Sensible defaults for a machine without GPU; on a GPU vLLM's own are."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    import torch

    if torch.cuda.is_available():
        return
    # In one process an engine starts three times faster, and dies with its actor.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CPU_KV_CACHE_GIB))
    # vLLM's own choice leaves a core idle.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
