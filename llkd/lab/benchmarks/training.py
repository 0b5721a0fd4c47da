"""Rows a second of a training epoch, compared with transformers' Trainer on the same rows.

Same student, batch size, length, learning rate and precision. The clock runs from the request of the
first batch to the end of the last step; a short training before it is not counted.

    ours              rows read from shards, tokenised, batched by length, trained on
    trainer           transformers.Trainer over a `datasets.Dataset` that is tokenised before the
                      clock starts; padded batch by batch
    trainer_grouped   the same, with the Trainer's own grouping by length
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from llkd.config.packages import require_packages
from llkd.config.run import RunConfig
from llkd.distill.worker import STEPS_AHEAD
from llkd.lab.benchmarks import contest, student
from llkd.lab.benchmarks.arguments import add_speed, config_of
from llkd.store.folder import Folder
from llkd.store.schema import RunLayout
from llkd.student.data import SelectedRows, portion
from llkd.student.model import load_student
from llkd.student.prefetch import Ahead
from llkd.student.training import Schedule, Trainer

WARM_UP_STEPS = 2


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of `run`."""
    add_speed(parser, 1024)


def run(arguments: argparse.Namespace, say: Callable[[str], None]) -> dict[str, Any]:
    """Measure as the command line says."""
    require_packages("benchmark training", "accelerate", extra="demo")
    config = config_of(arguments)
    return benchmark_training(config, arguments.rows, arguments.rounds, say)


def benchmark_training(
    config: RunConfig, rows: int, rounds: int, say: Callable[[str], None]
) -> dict[str, Any]:
    """Measure with the config's corpus and student.

    Returns:
        `rows_per_second` by contestant and round, and `ratios` of ours to the others.
    """
    with tempfile.TemporaryDirectory(prefix="llkd-benchmark-") as name:
        folder = Path(name)
        config = student.prepare(config, folder, rows)
        texts = contest.read_texts(folder / student.TEXTS)
        rates = contest.race(
            "llkd.lab.benchmarks.training", config, folder, list(CONTESTANTS), rounds, say,
            what="training",
        )  # fmt: skip
    return {
        "rows_per_second": rates,
        "ratios": {
            "vs_trainer": contest.ratio(rates, "trainer"),
            "vs_trainer_grouped": contest.ratio(rates, "trainer_grouped"),
        },
        "batch_size": config.student.batch_size,
        **student.describe(config, texts, rounds),
    }


def table(result: Mapping[str, Any]) -> str:
    """The figures as text."""
    return contest.table({result["precision"]: result["rows_per_second"]}, result)


def run_ours(config: RunConfig, folder: Path) -> float:
    """An epoch, as a single worker of the epoch loop trains it."""
    _train_ours(config, folder, WARM_UP_STEPS)
    return _train_ours(config, folder, None)


def _train_ours(config: RunConfig, folder: Path, steps: int | None) -> float:
    """Train a fresh student for `steps` steps (None: an epoch); returns rows a second."""
    layout, settings, device = RunLayout(str(folder)), config.student, student.device()
    tokenizer, model = load_student(settings, config.task.label_names)
    trainer = Trainer(model.to(device), settings, device, student.is_bfloat16(config))
    corpus, selection = Folder(layout.rows("corpus")), Folder(layout.selection(0))
    rows = SelectedRows(
        corpus, selection, tokenizer,
        batch_size=settings.batch_size, max_length=settings.max_length,
    )  # fmt: skip
    part = portion(student.shard_rows(selection), 0, 1, config.seed)
    started = time.perf_counter()
    with Ahead(islice(rows.steps(part, config.seed, weight_mean=1.0), steps), STEPS_AHEAD) as ahead:
        count = steps or -(-part.rows // settings.batch_size)
        _, trained = trainer.train(ahead, Schedule(0, count, 1, 0.0))
    return trained / (time.perf_counter() - started)


def run_trainer(config: RunConfig, folder: Path, strategy: str) -> float:
    """The Trainer as in the course on transformers."""
    _train_with_transformers(config, folder, strategy, WARM_UP_STEPS)
    return _train_with_transformers(config, folder, strategy, None)


def _train_with_transformers(
    config: RunConfig, folder: Path, strategy: str, steps: int | None
) -> float:
    """Train a fresh student for `steps` steps (None: an epoch); returns rows a second."""
    import transformers

    settings = config.student
    tokenizer, model = student.load_as_users_do(config)
    arguments = transformers.TrainingArguments(
        output_dir=str(folder / "trainer"),
        num_train_epochs=1,
        max_steps=steps or -1,
        per_device_train_batch_size=settings.batch_size,
        learning_rate=settings.learning_rate,
        weight_decay=settings.weight_decay,
        max_grad_norm=settings.max_grad_norm,
        bf16=student.is_bfloat16(config),
        use_cpu=student.device().type == "cpu",
        train_sampling_strategy=strategy,
        eval_strategy="no",
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
        seed=config.seed,
    )
    dataset = _dataset(config, folder, tokenizer)
    clock = _clock()
    transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=dataset,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        callbacks=[clock],
    ).train()
    rows = len(dataset) if steps is None else steps * settings.batch_size
    return rows / (clock.ended - clock.started)


def _dataset(config: RunConfig, folder: Path, tokenizer: Any) -> Any:
    """The rows that `ours` reads, tokenised."""
    from datasets import Dataset

    texts = contest.read_texts(folder / student.TEXTS)
    labels = student.draw_labels(config, len(texts)).tolist()
    return Dataset.from_dict({"text": texts, "label": labels}).map(
        lambda rows: tokenizer(rows["text"], truncation=True, max_length=config.student.max_length),
        batched=True,
        remove_columns=["text"],
    )


def _clock() -> Any:
    """A callback that records when the first batch is requested and the last step ends."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):  # type: ignore[misc]
        started = ended = 0.0

        def on_epoch_begin(self, *_: Any, **__: Any) -> None:
            self.started = time.perf_counter()

        def on_step_end(self, arguments: Any, state: Any, *_: Any, **__: Any) -> None:
            if state.global_step == state.max_steps:
                if torch.cuda.is_available():
                    torch.cuda.synchronize()
                self.ended = time.perf_counter()

    return Clock()


CONTESTANTS: dict[str, contest.Contestant] = {
    "ours": run_ours,
    "trainer": partial(run_trainer, strategy="random"),
    "trainer_grouped": partial(run_trainer, strategy="group_by_length"),
}


if __name__ == "__main__":
    contest.serve(CONTESTANTS)
