"""The student as ONNX, to serve it without torch; verified against the student itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llkd.errors import ExportError

MAX_DIFFERENCE = 1e-4
"""Between a probability of the student and that of its ONNX form, both in float32."""
MAX_INLINE_BYTES = 1 << 30
"""Larger weights go into a file of their own: an ONNX file holds 2 GiB at most."""


def write_onnx(
    tokenizer: Any, model: Any, path: Path, texts: Sequence[str], max_length: int
) -> float:
    """Write the student as ONNX: tokens in, `logits` out, batch and sequence of any size.

    Args:
        tokenizer: the student's.
        model: in float32, on the CPU.
        path: of the file.
        texts: of differing lengths, on which both are compared.
        max_length: in tokens; longer texts are truncated.

    Returns:
        The largest difference between their probabilities.

    Raises:
        ExportError: the model cannot be exported, or the ONNX outputs differ.
    """
    model = model.eval()
    model.config.use_cache = False  # a decoder's cache would be an output
    names = _write(tokenizer, model, path)
    difference = _largest_difference(tokenizer, model, path, names, texts, max_length)
    if not difference <= MAX_DIFFERENCE:  # NaN too
        raise ExportError(
            f"The ONNX outputs of the student ({type(model).__name__}) differ: its probabilities "
            f"by {difference:.1e}, more than {MAX_DIFFERENCE:.0e}.",
            "Set export.onnx to false.",
        )
    return difference


def _write(tokenizer: Any, model: Any, path: Path) -> list[str]:
    """Write the file; returns the names of its inputs."""
    import torch

    example = dict(tokenizer(["a", "a a a"], return_tensors="pt", padding=True))
    axes = {0: "batch", 1: "sequence"}
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.onnx.export(
            model, (), str(path), kwargs=example, input_names=list(example),
            output_names=["logits"], dynamic_shapes=dict.fromkeys(example, axes), dynamo=True,
            verbose=False, external_data=weights > MAX_INLINE_BYTES,
        )  # fmt: skip
    except Exception as error:  # the exporter raises many kinds
        raise ExportError(
            f"This student ({type(model).__name__}) cannot be exported to ONNX: {error}.",
            "Set export.onnx to false.",
        ) from error
    return list(example)


def _largest_difference(
    tokenizer: Any, model: Any, path: Path, names: Sequence[str], texts: Sequence[str],
    max_length: int,
) -> float:  # fmt: skip
    """The largest difference between their probabilities; NaN if one is NaN."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    by_length, differences = sorted(texts, key=len), []
    middle = len(by_length) // 2
    for batch in (by_length[:1], by_length[:middle], by_length[middle:], by_length[-1:], by_length):
        if not batch:
            continue
        tokens = tokenizer(
            batch, return_tensors="pt", padding=True, truncation=True, max_length=max_length
        )
        with torch.inference_mode():
            expected = torch.softmax(model(**tokens).logits, dim=-1).numpy()
        (logits,) = session.run(["logits"], {name: tokens[name].numpy() for name in names})
        found = torch.softmax(torch.from_numpy(logits), dim=-1).numpy()
        differences.append(np.abs(found - expected).max())
    return float(np.max(differences))
