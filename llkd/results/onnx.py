"""The student as ONNX, for those who serve without torch; checked against the student itself."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from llkd.errors import ExportError

LARGEST_DIFFERENCE = 1e-4
"""Between two probabilities, of the student and of its ONNX form, both in float32."""
ONE_FILE_BYTES = 1 << 30
"""Larger weights lie in a file of their own: an ONNX file holds 2 GiB at most."""


def write_onnx(
    tokenizer: Any, model: Any, path: Path, texts: Sequence[str], max_length: int
) -> float:
    """Write the student as ONNX: tokens in, `logits` out, batch and sequence of any size.

    Args:
        tokenizer: the student's.
        model: in float32, on the CPU.
        path: of the file.
        texts: to check it on, of differing lengths.
        max_length: tokens that a text is cut to.

    Returns:
        The largest difference between two probabilities of theirs.

    Raises:
        ExportError: the model has no form in ONNX, or one that does not say what it says.
    """
    model = model.eval()
    model.config.use_cache = False  # of a decoder; it would be an output
    names = _write(tokenizer, model, path)
    difference = _largest_difference(tokenizer, model, path, names, texts, max_length)
    if not difference <= LARGEST_DIFFERENCE:  # NaN too
        raise ExportError(
            f"The ONNX form of the student ({type(model).__name__}) is not the student: "
            f"its probabilities differ by {difference:.1e}, which is more than "
            f"{LARGEST_DIFFERENCE:.0e}.",
            "Set export.onnx to false.",
        )
    return difference


def _write(tokenizer: Any, model: Any, path: Path) -> list[str]:
    """Write the file; returns the names of its inputs."""
    import torch

    example = tokenizer(["a", "a a a"], return_tensors="pt", padding=True)
    names = list(example)

    class Logits(torch.nn.Module):
        """The model as a function of tensors alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *tensors: torch.Tensor) -> torch.Tensor:
            return self.model(**dict(zip(names, tensors, strict=True))).logits

    axes = tuple({0: "batch", 1: "sequence"} for _ in names)
    weights = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        torch.onnx.export(
            Logits().eval(), tuple(example[name] for name in names), str(path), input_names=names,
            output_names=["logits"], dynamic_shapes=(axes,), dynamo=True, verbose=False,
            external_data=weights > ONE_FILE_BYTES,
        )  # fmt: skip
    except Exception as error:  # the exporter raises whatever it meets
        raise ExportError(
            f"This student ({type(model).__name__}) has no form in ONNX: {error}.",
            "Set export.onnx to false.",
        ) from error
    return names


def _largest_difference(
    tokenizer: Any, model: Any, path: Path, names: Sequence[str], texts: Sequence[str],
    max_length: int,
) -> float:  # fmt: skip
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    by_length = sorted(texts, key=len)
    middle = len(by_length) // 2
    largest = 0.0
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
        largest = max(largest, float(np.abs(found - expected).max()), key=_nan_first)
    return largest


def _nan_first(difference: float) -> float:
    return np.inf if np.isnan(difference) else difference
