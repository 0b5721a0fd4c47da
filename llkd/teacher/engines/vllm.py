"""A teacher served by vLLM, inside the process of its Ray actor."""

import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from multiprocessing import active_children
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, get_args

import numpy as np
from filelock import FileLock

from llkd.config.run import TaskConfig, TeacherConfig
from llkd.errors import TeacherError
from llkd.teacher.engine import LabelBatch
from llkd.teacher.prompting import Prompter, make_prompter

CPU_KV_CACHE_GIB = 2
"""Default of VLLM_CPU_KVCACHE_SPACE. Each prompt generates one token, so the cache stays small."""

CPU_BLOCK_SIZE = 32
"""Tokens per block of the key-value cache on a CPU. Only whole blocks of the shared prefix are
cached; with vLLM's default of 128, every row would recompute up to 127 of its tokens."""


class VLLMEngine:
    """Reads the log-probability of every label after the prompt.

    It requests the labels' tokens by id (`logprob_token_ids`): a list of the most probable tokens
    would silently lose labels.
    """

    concurrent = True

    def __init__(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        """See Engine.

        Raises:
            TeacherError: vLLM cannot load the model, or it cannot express the labels.
            RuntimeError: the engine's own process was killed; a retry may succeed.
        """
        prepare_platform(on_gpus(teacher))
        from vllm import LLM
        from vllm.v1.engine.exceptions import EngineDeadError

        # One thread creates and calls the engine. On a CPU each computing thread gets its own
        # OpenMP threads, and more of these than cores slow each other down.
        self._thread = ThreadPoolExecutor(max_workers=1)
        self._requests = itertools.count()

        with _start_lock():
            start = self._thread.submit(
                LLM, model=teacher.model, revision=teacher.revision, **engine_arguments(teacher)
            )
            processes = _engine_processes(start)
        try:
            self._llm = start.result()
        except Exception as error:  # vLLM raises many kinds
            if isinstance(error, EngineDeadError) or _was_killed(str(error), processes):
                raise RuntimeError(
                    f"vLLM's engine process died while it started ({error}): the usual cause is too "
                    "little memory"
                ) from error
            raise TeacherError(f"vLLM cannot load {teacher.model}: {error}") from error
        self.max_model_len = self._llm.llm_engine.model_config.max_model_len
        self._lora = _lora_request(teacher)
        self.use(teacher, task)

    def use(self, teacher: TeacherConfig, task: TaskConfig) -> None:
        """Switch to another task or other prompt settings, with the loaded model.

        Raises:
            TeacherError: the labels cannot be distinguished, or the prompt does not fit.
        """
        self.use_prompter(make_prompter(teacher, task, self._llm.get_tokenizer()))

    def use_prompter(self, prompter: Prompter) -> None:
        """Switch to other prompts.

        Raises:
            TeacherError: they do not fit into the model's context.
        """
        from vllm import SamplingParams
        from vllm.sampling_params import RequestOutputKind

        self.prompter = prompter
        prompter.room(self.max_model_len)
        self._params = [
            SamplingParams(
                max_tokens=1,
                temperature=0.0,
                logprob_token_ids=list(question.tokens),
                flat_logprobs=True,
                detokenize=False,
                output_kind=RequestOutputKind.FINAL_ONLY,
                skip_clone=True,  # a shallow copy for each request is enough
            )
            for question in self.prompter.verbalizer.questions
        ]
        # Caches the shared prefix, so that all shards meet an engine in the same state.
        before, after = self.prompter.fixed
        self._thread.submit(self._ask, [[*before, *after]], lambda done: None).result()

    @staticmethod
    def machine_arguments(teacher: TeacherConfig) -> dict[str, Any]:
        """Engine arguments that are measured, once per run: on a CPU the faster number format. On a
        GPU vLLM's defaults are right."""
        from llkd.cluster.hardware import cpu_prefers_bfloat16

        if on_gpus(teacher) or "dtype" in teacher.engine_args:
            return {}
        return {"dtype": "bfloat16" if cpu_prefers_bfloat16() else "float32"}

    def label(
        self, texts: Sequence[str], ids: Sequence[Any], progress: Callable[[int], None]
    ) -> LabelBatch:
        """See Engine.label."""
        prompts = self.prompter.prompts(texts, self.max_model_len)
        return self._thread.submit(self._ask, prompts, progress).result()

    def _ask(
        self, prompts: Sequence[Sequence[int] | None], progress: Callable[[int], None]
    ) -> LabelBatch:
        """Request every question after every prompt; returns the labels' log-probabilities."""
        verbalizer = self.prompter.verbalizer
        refused: dict[int, str] = {}
        asked: dict[str, tuple[int, int]] = {}
        total = 0
        for row, prompt in enumerate(prompts):
            if prompt is None:
                refused[row] = "no_tokens"
                continue
            try:
                for number, question in enumerate(verbalizer.questions):
                    whole = [*prompt, *question.path]
                    asked[self._enqueue(whole, number)] = row, number
                    total += len(whole)
            except ValueError:  # vLLM rejects this prompt
                refused[row] = "refused_by_engine"
        answers = [
            np.zeros((len(prompts), len(question.tokens)), dtype=np.float32)
            for question in verbalizer.questions
        ]
        engine, done = self._llm.llm_engine, 0
        while engine.has_unfinished_requests():
            for output in engine.step():
                if output.finished:
                    row, number = asked[output.request_id]
                    first = output.outputs[0].logprobs[0]
                    tokens = verbalizer.questions[number].tokens
                    answers[number][row] = [first[token].logprob for token in tokens]
                    done += 1
            progress(done // len(verbalizer.questions))
        return LabelBatch(verbalizer.logprobs(answers), refused, total)

    def _enqueue(self, tokens: list[int], question: int) -> str:
        """Add a request to the engine directly; `LLM.enqueue` would process each prompt as text."""
        from vllm.inputs import tokens_input

        request = str(next(self._requests))
        self._llm.llm_engine.add_request(
            request, tokens_input(tokens), self._params[question], lora_request=self._lora
        )
        return request


def _start_lock() -> FileLock:
    """Serialises starts on the same GPUs, or on a node's CPUs: vLLM measures the free memory while
    it starts, and concurrent starts slow each other down."""
    place = hashlib.sha256(os.environ.get("CUDA_VISIBLE_DEVICES", "").encode()).hexdigest()[:8]
    return FileLock(os.path.join(tempfile.gettempdir(), f"llkd-start-{os.getuid()}-{place}.lock"))


def _engine_processes(start: "Future[Any]") -> set[BaseProcess]:
    """The engine's own processes, if vLLM creates any; waits for the end of the start."""
    found: set[BaseProcess] = set()
    while not start.done():
        found.update(each for each in active_children() if each.name.startswith("EngineCore"))
        wait([start], timeout=0.05)
    return found


def _was_killed(message: str, processes: Collection[BaseProcess]) -> bool:
    """Whether a start failed because a process of the engine was killed. A process that fails, such
    as for a model that cannot be loaded, exits with a code above 0. vLLM's message is the same for
    both, and it usually reads the code before the system has it."""
    if not message.startswith("Engine core initialization failed"):
        return False
    for process in processes:
        process.join(timeout=10)
    codes = [process.exitcode or 0 for process in processes]
    return bool(codes) and max(codes) <= 0


def engine_arguments(teacher: TeacherConfig) -> dict[str, Any]:
    """vLLM's arguments: the config's, over LLKD's defaults."""
    defaults: dict[str, Any] = {"disable_log_stats": True, "enable_prefix_caching": True}
    if not on_gpus(teacher):
        defaults["block_size"] = CPU_BLOCK_SIZE
    if teacher.nodes > 1:
        defaults["distributed_executor_backend"] = "ray"
    if teacher.lora is not None:
        defaults |= {"enable_lora": True, "max_lora_rank": _lora_rank(teacher.lora)}
    if "://" not in teacher.model and not teacher.model.endswith(".gguf"):
        defaults["load_format"] = "safetensors"  # "auto" falls back to pickled files
    return {**defaults, **teacher.engine_args}


def _lora_rank(lora: str) -> int:
    """The smallest rank that vLLM reserves memory for and the adapter fits in; vLLM's default is 16.

    Raises:
        TeacherError: the adapter's config cannot be read, or its rank is too large.
    """
    from transformers.utils import cached_file
    from vllm.config.lora import MaxLoRARanks

    try:
        adapter = json.loads(Path(str(cached_file(lora, "adapter_config.json"))).read_bytes())
        rank = max([adapter["r"], *adapter.get("rank_pattern", {}).values()])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TeacherError(
            f"teacher.lora: the rank of {lora} cannot be read from its adapter_config.json: {error}"
        ) from error
    ranks = [most for most in get_args(MaxLoRARanks) if most >= rank]
    if not ranks:
        raise TeacherError(f"teacher.lora: {lora} has rank {rank}, more than vLLM serves")
    return int(min(ranks))


def _lora_request(teacher: TeacherConfig) -> Any:
    """The request's LoRA adapter; None without adapter."""
    if teacher.lora is None:
        return None
    from vllm.lora.request import LoRARequest

    return LoRARequest("teacher", 1, teacher.lora)


def on_gpus(teacher: TeacherConfig) -> bool:
    """Whether the engine computes on GPUs: those of this process or, over several nodes, those of
    its workers."""
    import torch

    return teacher.nodes > 1 or torch.cuda.is_available()


def prepare_platform(gpus: bool) -> None:
    """Set the environment of vLLM: on a machine without GPUs, LLKD's defaults replace vLLM's."""
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    if gpus:
        return
    # In the actor's process, the engine starts three times faster and dies with the actor.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", str(CPU_KV_CACHE_GIB))
    # vLLM's default leaves a core idle.
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
