"""Rows a second of the labelling stage, compared with other ways to label the same rows.

All contestants answer the same prompts with the same engine arguments. The start of an engine is not
counted.

    ours           the stage, from the start of the first shard to the end of the last: reading,
                   tokenising, engine, writing
    vllm           bare vllm.LLM.generate over all prompts at once
    ray_data_llm   ray.data.llm, from the start of the first row in the engine to the end of the last,
                   by the engine time that it records for each row
    transformers   a plain loop: batches of 8 padded prompts, forward, log-softmax
"""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from llkd.config.packages import require_packages
from llkd.config.run import RunConfig
from llkd.lab.benchmarks import contest
from llkd.lab.benchmarks.arguments import add_speed, config_of
from llkd.lab.benchmarks.contest import read_texts

SHARDS = 2
"""Shards in the rows of `ours`."""
TINY_ROWS = 24
"""Factor on the rows for the tiny model, which labels pieces of the texts."""
TINY_VOCABULARY = 4096
TRANSFORMERS_ROWS = 24
"""The plain loop is too slow for all rows."""
TRANSFORMERS_BATCH = 8


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `run`."""
    add_speed(parser, 512, ())


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure as the command line says."""
    require_packages("benchmark teacher", "vllm", extra="gpu")
    config = config_of(arguments)
    return benchmark_teacher(config, arguments.rows, arguments.rounds, say)


def benchmark_teacher(
    config: RunConfig, rows: int, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure with the config's teacher, and with a random one so small that the framework dominates
    the cost.

    Args:
        config: its corpus, task and teacher are used; `run_dir` is not touched.
        rows: rows per contestant and round.
        rounds: number of rounds.
        say: prints a line of progress.

    Returns:
        `rows_per_second` by model and contestant, and `ratios` of ours to the others.
    """
    with tempfile.TemporaryDirectory(prefix="llkd-benchmark-") as name:
        folder = Path(name)
        texts, more_texts = folder / "texts.parquet", folder / "more_texts.parquet"
        contest.write_texts(config, texts, rows, contest.whole)
        contest.write_texts(config, more_texts, TINY_ROWS * rows, contest.pieces)
        tiny = folder / "tiny"
        _make_tiny(more_texts, tiny)
        rates = {
            "model": _race(
                config, texts, ("ours", "vllm", "ray_data_llm", "transformers"), rounds, say
            ),
            "tiny": _race(
                _with_model(config, str(tiny)), more_texts, ("ours", "vllm", "ray_data_llm"),
                rounds, say,
            ),
        }  # fmt: skip
    return {
        "rows_per_second": rates,
        "ratios": {
            "vs_vllm": contest.ratio(rates["model"], "vllm"),
            "vs_ray_data_llm": contest.ratio(rates["model"], "ray_data_llm"),
            "vs_transformers": contest.ratio(rates["model"], "transformers"),
            "vs_vllm_tiny": contest.ratio(rates["tiny"], "vllm"),
            "vs_ray_data_llm_tiny": contest.ratio(rates["tiny"], "ray_data_llm"),
        },
        "rows": rows,
        "rounds": rounds,
    }


def table(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    return contest.table(result["rows_per_second"], result)


def _race(
    config: RunConfig,
    texts: Path,
    contestants: Sequence[str],
    rounds: int,
    say: Callable[[str], None],
) -> contest.Rates:
    return contest.race(
        "llkd.lab.benchmarks.teacher", config, texts, contestants, rounds, say,
        what=config.teacher.model,
        environment={"VLLM_LOGGING_LEVEL": "ERROR", "TOKENIZERS_PARALLELISM": "false"},
    )  # fmt: skip


def _make_tiny(texts: Path, folder: Path) -> None:
    """Write a random model of one small layer, with a tokenizer trained on the texts. Its vocabulary is
    small: the log-probabilities of a large one would dominate the cost."""
    import torch
    from tokenizers import ByteLevelBPETokenizer
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    learner = ByteLevelBPETokenizer()
    learner.train_from_iterator(read_texts(texts), TINY_VOCABULARY, special_tokens=["<|end|>"])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=learner._tokenizer, eos_token="<|end|>")
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=64, intermediate_size=64, num_hidden_layers=1,
            num_attention_heads=1, num_key_value_heads=1, tie_word_embeddings=True,
            bos_token_id=None, eos_token_id=tokenizer.eos_token_id,
        )
    ).save_pretrained(folder)  # fmt: skip
    tokenizer.save_pretrained(folder)


def _with_model(config: RunConfig, model: str) -> RunConfig:
    """The same task for the tiny model, whose tokenizer may lack the labels as words."""
    teacher = config.teacher.model_copy(update={"model": model, "verbalizer": "code"})
    return config.model_copy(update={"teacher": teacher})


def _prompts(config: RunConfig, texts: Sequence[str]) -> tuple[list[list[int]], list[int]]:
    """(token ids of each prompt, tokens of the labels): the input of every contestant."""
    from transformers import AutoTokenizer

    from llkd.teacher.prompting import make_prompter

    tokenizer = AutoTokenizer.from_pretrained(config.teacher.model, trust_remote_code=False)
    prompter = make_prompter(config.teacher, config.task, tokenizer)
    (question,) = prompter.verbalizer.questions
    limit = int(config.teacher.engine_args.get("max_model_len", 2048))
    return [prompt for prompt in prompter.prompts(texts, limit) if prompt], list(question.tokens)


def _arguments(config: RunConfig) -> dict[str, Any]:
    """The engine arguments of all contestants that run vLLM; the number format is measured once."""
    from llkd.teacher.engines.vllm import VLLMEngine, engine_arguments

    return {**VLLMEngine.machine_arguments(config.teacher), **engine_arguments(config.teacher)}


def run_ours(config: RunConfig, texts: Path) -> float:
    """The stages as the job runs them, on a Ray of their own."""
    from llkd.cluster import connection
    from llkd.cluster.progress import ProgressTracker
    from llkd.ingest.stage import ingest
    from llkd.teacher.stage import label

    rows = pq.read_metadata(texts).num_rows
    run_dir = tempfile.mkdtemp(prefix="llkd-benchmark-run-")
    corpus = config.corpus.model_copy(
        update={"path": str(texts), "text_column": "text", "label_column": None,
                "id_column": None, "rows_per_shard": -(-rows // SHARDS)}
    )  # fmt: skip
    config = config.model_copy(update={"run_dir": run_dir, "corpus": corpus, "test": None})
    connection.connect()
    try:
        tracker = ProgressTracker.remote()  # type: ignore[attr-defined]
        ingest(config, "corpus", tracker)
        return float(label(config, ["corpus"], tracker)["corpus"].results["rows_per_second"])
    finally:
        connection.disconnect()
        shutil.rmtree(run_dir)


def run_vllm(config: RunConfig, texts: Path) -> float:
    """`LLM.generate` over all prompts, then the log-probabilities of the labels."""
    from llkd.teacher.engines.vllm import on_gpus, prepare_platform

    prepare_platform(on_gpus(config.teacher))
    from vllm import LLM, SamplingParams

    prompts, tokens = _prompts(config, read_texts(texts))
    params = SamplingParams(max_tokens=1, temperature=0.0, logprob_token_ids=tokens)
    llm = LLM(model=config.teacher.model, **_arguments(config))
    inputs: Any = [{"prompt_token_ids": prompt} for prompt in prompts]
    llm.generate(inputs[0], params, use_tqdm=False)
    started = time.perf_counter()
    outputs = llm.generate(inputs, params, use_tqdm=False)
    for output in outputs:
        logprobs = output.outputs[0].logprobs
        assert logprobs is not None
        _ = [logprobs[0][token].logprob for token in tokens]
    return len(prompts) / (time.perf_counter() - started)


def run_ray_data_llm(config: RunConfig, texts: Path) -> float:
    """`ray.data.llm` with its own batch size and concurrency."""
    from llkd.cluster import connection
    from llkd.teacher.engines.vllm import on_gpus, prepare_platform

    prepare_platform(on_gpus(config.teacher))
    prompts, tokens = _prompts(config, read_texts(texts))
    connection.connect()
    import ray.data
    from ray.data.llm import build_processor, vLLMEngineProcessorConfig

    names = ("VLLM_CPU_KVCACHE_SPACE", "VLLM_CPU_OMP_THREADS_BIND", "VLLM_LOGGING_LEVEL",
             "VLLM_ENABLE_V1_MULTIPROCESSING")  # fmt: skip
    processor = build_processor(
        vLLMEngineProcessorConfig(
            model_source=config.teacher.model,
            engine_kwargs=_arguments(config),
            placement_group_config={"bundles": [{"CPU": 1}]},
            log_engine_metrics=False,
            runtime_env={"env_vars": {name: os.environ[name] for name in names}},
            chat_template_stage=False, tokenize_stage=False, detokenize_stage=False,
        ),
        preprocess=lambda row: {
            "tokenized_prompt": row["tokenized_prompt"],
            "sampling_params": {"max_tokens": 1, "temperature": 0.0, "logprob_token_ids": tokens},
        },
        postprocess=lambda row: {
            "logprobs": str(row["logprobs"]),
            "ended": time.time(),
            "seconds": row["time_taken_llm"],
        },
    )  # fmt: skip
    dataset = processor(ray.data.from_items([{"tokenized_prompt": p} for p in prompts]))
    rows = dataset.take_all()
    connection.disconnect()
    begun = min(row["ended"] - row["seconds"] for row in rows)
    return len(rows) / (max(row["ended"] for row in rows) - begun)


def run_transformers(config: RunConfig, texts: Path) -> float:
    """A plain loop without an engine."""
    import torch
    from transformers import AutoModelForCausalLM

    prompts, tokens = _prompts(config, read_texts(texts)[:TRANSFORMERS_ROWS])
    dtype = _arguments(config).get("dtype", "auto")
    model = AutoModelForCausalLM.from_pretrained(
        config.teacher.model, dtype=dtype, use_safetensors=True, trust_remote_code=False
    ).eval()
    started = time.perf_counter()
    for begin in range(0, len(prompts), TRANSFORMERS_BATCH):
        batch = prompts[begin : begin + TRANSFORMERS_BATCH]
        longest = max(map(len, batch))
        ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in batch])
        mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in batch])
        with torch.inference_mode():
            logits = model(ids, attention_mask=mask, logits_to_keep=1).logits[:, -1]
            _ = logits.float().log_softmax(-1)[:, tokens].tolist()
    return len(prompts) / (time.perf_counter() - started)


CONTESTANTS: dict[str, contest.Contestant] = {
    "ours": run_ours,
    "vllm": run_vllm,
    "ray_data_llm": run_ray_data_llm,
    "transformers": run_transformers,
}


if __name__ == "__main__":
    contest.serve(CONTESTANTS)
