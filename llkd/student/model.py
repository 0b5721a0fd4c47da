"""Loads the student as a classifier over the task's labels."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING,
    AutoConfig,
    AutoModelForSequenceClassification,
    AutoTokenizer,
)

from llkd.cluster.hardware import cpu_prefers_bfloat16
from llkd.config.packages import require_packages
from llkd.config.student import LoraSettings, StudentConfig
from llkd.errors import StudentError
from llkd.student.pooling import (
    can_pool,
    pooling_of,
    require_poolable,
    set_pooling,
    trained_pooling,
    untrained_modules,
)


def load_student(student: StudentConfig, labels: Sequence[str]) -> tuple[Any, Any]:
    """(tokenizer, model) with a new classification head, in float32, ready for training.

    Raises:
        StudentError: the model or its tokenizer cannot be loaded, or does not support adapters or
            the pooling.
    """
    tokenizer, model, fresh = _load(
        student.model,
        revision=student.revision,
        num_labels=len(labels),
        id2label=dict(enumerate(labels)),
        label2id={name: index for index, name in enumerate(labels)},
        ignore_mismatched_sizes=True,
        attn_implementation=student.attn_implementation,
    )
    _pool(student, model)
    if student.gradient_checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    if student.lora is not None:
        model = _with_adapters(model, student.lora, fresh)
    _freeze_unused(tokenizer, model)
    return tokenizer, model


def head_of(model: torch.nn.Module, trained: bool = True) -> torch.nn.Linear:
    """The last linear layer of a classifier, which gives the logits.

    Args:
        model: the classifier, which may be wrapped.
        trained: whether its weights are trained; those of a copy for scoring are not.
    """
    linear = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    return [m for m in linear if m.weight.requires_grad or not trained][-1]


def _pool(student: StudentConfig, model: Any) -> None:
    """Set the pooling of `student.pooling`."""
    pooling: Any = student.pooling
    if pooling == "auto":
        pooling = pooling_of(model)
        if pooling is None and can_pool(model):
            pooling = trained_pooling(student.model, student.revision)
    if pooling not in (None, "native"):
        set_pooling(model, pooling)


def _freeze_unused(tokenizer: Any, model: Any) -> None:
    """Freeze weights that get no gradient: data-parallel workers would wait for it forever."""
    was_training = model.training
    model.train()
    model(**tokenizer(["a"], return_tensors="pt")).logits.sum().backward()
    for parameter in model.parameters():
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    model.train(was_training)


def _with_adapters(model: Any, lora: LoraSettings, fresh: Sequence[str]) -> Any:
    """The model with adapters; layers that its checkpoint lacks (`fresh`) are trained in full."""
    require_packages("student.lora", "peft", extra="lora")
    from peft import LoraConfig, get_peft_model

    modules = lora.target_modules
    try:
        return get_peft_model(
            model,
            LoraConfig(
                task_type="SEQ_CLS",
                r=lora.rank,
                lora_alpha=lora.alpha,
                lora_dropout=lora.dropout,
                target_modules=modules if isinstance(modules, str) else list(modules),
                exclude_modules=untrained_modules(model),
                modules_to_save=sorted({name.rpartition(".")[0] for name in fresh}),
            ),
        )
    except ValueError as error:
        raise StudentError(f"student.lora: {error}") from error


def without_adapters(model: Any) -> Any:
    """The model with its adapters merged into the weights; unchanged if it has none."""
    return model.merge_and_unload() if hasattr(model, "merge_and_unload") else model


def require_loadable(student: StudentConfig) -> None:
    """Check that the model's config and tokenizer can be loaded, and that it can have the pooling,
    before labelling takes hours.

    Raises:
        StudentError: one cannot be loaded, or its layers do not support the pooling.
    """
    try:
        config = _config(student)
        if student.pooling in ("mean", "cls"):
            with torch.device("meta"):
                model = AutoModelForSequenceClassification.from_config(config)
            require_poolable(model, student.pooling)
        AutoTokenizer.from_pretrained(
            student.model, revision=student.revision, trust_remote_code=False
        )
    except (OSError, ValueError) as error:
        raise _cannot_load(student.model, error) from error


def model_class(student: StudentConfig) -> type[Any] | None:
    """The student's class, imported; None for a model outside of transformers."""
    found: type[Any] | None = MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING.get(
        type(_config(student)), None
    )
    return found


def _config(student: StudentConfig) -> Any:
    # By default transformers asks at the terminal whether to run the model's own code.
    return AutoConfig.from_pretrained(
        student.model, revision=student.revision, trust_remote_code=False
    )


def _cannot_load(name: str, error: Exception) -> StudentError:
    return StudentError(
        f"student.model: cannot load {name}, neither as a local directory nor from the hub: {error}"
    )


def load_finished(directory: str, attn_implementation: str | None = None) -> tuple[Any, Any]:
    """(tokenizer, model) of a saved student.

    Args:
        directory: its files.
        attn_implementation: `student.attn_implementation`.

    Raises:
        StudentError: it cannot be loaded.
    """
    tokenizer, model, _ = _load(directory, attn_implementation=attn_implementation)
    return tokenizer, model


def _load(
    name: str, revision: str | None = None, **arguments: Any
) -> tuple[Any, Any, Sequence[str]]:
    """(tokenizer, model, names of randomly initialised weights that the checkpoint lacks)."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, revision=revision, trust_remote_code=False)
        model, report = AutoModelForSequenceClassification.from_pretrained(
            name, revision=revision, dtype=torch.float32, use_safetensors=True,
            trust_remote_code=False, output_loading_info=True, **arguments,
        )  # fmt: skip
    except (OSError, ValueError, ImportError, SafetensorError) as error:
        raise _cannot_load(name, error) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token_id is None:
            raise StudentError(f"student.model: the tokenizer of {name} has no token to pad with")
        tokenizer.pad_token = tokenizer.eos_token
    # A decoder classifies at the last token that is not padding according to its config.
    for config in (model.config, model.config.get_text_config()):
        config.pad_token_id = tokenizer.pad_token_id
    return tokenizer, model, sorted(report["missing_keys"])


def use_bfloat16(precision: str, device: torch.device) -> bool:
    """Whether matrix products run in bfloat16 on a device, given `student.precision`."""
    if precision != "auto":
        return precision == "bfloat16"
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and cpu_prefers_bfloat16()


def autocast(device: torch.device, bfloat16: bool) -> AbstractContextManager[Any]:
    """A context that computes matrix products in bfloat16, if enabled."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=bfloat16)
