"""Pooling: how the student makes one vector of a text's tokens.

Encoders of the library sentence-transformers are trained to represent a text by the mean of its
tokens, or by its first token, and say so in their files. AutoModelForSequenceClassification always
takes the first token, through a dense layer that such an encoder does not have. Here its weights are
set so that it computes what the encoder was trained for; no code of ours is needed to run it.
"""

import json
import math
from pathlib import Path
from types import MethodType
from typing import Any, Literal

import torch
from transformers.utils import cached_file

from llkd.errors import StudentError

Pooling = Literal["mean", "cls"]

_CONFIG = "1_Pooling/config.json"
_KEY = "llkd_pooling"
"""In the config of a model: the pooling that its weights compute."""
_MEAN_WEIGHT = 16.0
"""Weight of the mean beside the first token's own state, which the residual connection adds."""


def trained_pooling(model: str, revision: str | None) -> Pooling | None:
    """The pooling in a model's sentence-transformers files; None without them, or for another one."""
    try:
        found = cached_file(model, _CONFIG, revision=revision)
        settings = json.loads(Path(found).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    for pooling in ("mean", "cls"):
        names = (f"pooling_mode_{pooling}_tokens", f"pooling_mode_{pooling}_token")
        if settings.get("pooling_mode") == pooling or any(settings.get(name) for name in names):
            return pooling
    return None


def pooling_of(model: Any) -> Pooling | None:
    """The pooling that `set_pooling` has set; None for any other model."""
    found: Pooling | None = getattr(getattr(model, "config", None), _KEY, None)
    return found


def set_pooling(model: Any, pooling: Pooling) -> None:
    """Set a classifier's weights so that its head reads the pooled vector, scaled to norm 1.

    For `mean` a layer is appended that attends to all tokens equally: its queries are zero, its values
    the identity, its feed-forward part zero. It is not trained. For either pooling, the dense
    layer before the classifier starts as a multiple of the identity, small enough for its tanh to be
    linear; it is trained.

    Args:
        model: a classifier of transformers whose layers are built like BERT's.
        pooling: of its tokens.

    Raises:
        StudentError: its layers are of another kind, or it has another pooling.
    """
    require_poolable(model, pooling)
    if pooling_of(model) is None:
        if pooling == "mean":
            _append_mean(model)
        setattr(model.config, _KEY, pooling)
    if pooling == "mean":
        _freeze(_layers(model)[-1])
    dense: Any = _dense(model)
    with torch.no_grad():
        dense.weight.copy_(torch.eye(len(dense.weight)) / math.sqrt(len(dense.weight)))
        dense.bias.zero_()


def require_poolable(model: Any, pooling: Pooling) -> None:
    """Check that a classifier, whose weights may be on the meta device, can have a pooling.

    Raises:
        StudentError: it cannot.
    """
    if not can_pool(model):
        raise StudentError(
            f"student.pooling: {pooling} cannot be set for {type(model).__name__}, whose layers are not "
            "like BERT's",
            "Set student.pooling: native.",
        )
    if pooling_of(model) not in (None, pooling):
        raise StudentError(
            f"student.pooling is {pooling}, but student.model was saved with {pooling_of(model)}",
            "Set student.pooling: auto, which keeps it.",
        )


def can_pool(model: Any) -> bool:
    """Whether `set_pooling` supports the layers of a classifier."""
    return _dense(model) is not None and _like_bert(model)


def untrained_modules(model: Any) -> list[str]:
    """The names of the linear layers that `set_pooling` has appended."""
    if pooling_of(model) != "mean":
        return []
    own = set(_layers(model)[-1].modules())
    return [n for n, m in model.named_modules() if m in own and isinstance(m, torch.nn.Linear)]


def _layers(model: Any) -> Any:
    return getattr(getattr(model.base_model, "encoder", None), "layer", None)


def _like_bert(model: Any) -> bool:
    """Whether a layer's attention depends on queries, keys and values alone."""
    layers = _layers(model)
    if not layers:
        return False
    attention = getattr(getattr(layers[-1], "attention", None), "self", None)
    parts = ("query", "key", "value")
    return (
        all(isinstance(getattr(attention, part, None), torch.nn.Linear) for part in parts)
        and getattr(model.config, "position_embedding_type", "absolute") == "absolute"
        and hasattr(layers[-1], "intermediate")
        and type(layers[-1].output.LayerNorm) is torch.nn.LayerNorm
    )


def _dense(model: Any) -> torch.nn.Linear | None:
    """The square layer with tanh before the classifier: BERT's pooler, or part of RoBERTa's head."""
    pooler = getattr(model.base_model, "pooler", None)
    for owner in (pooler, getattr(model, "classifier", None)):
        dense = getattr(owner, "dense", None)
        if isinstance(dense, torch.nn.Linear) and dense.in_features == dense.out_features:
            return dense
    return None


def _append_mean(model: Any) -> None:
    layers = _layers(model)
    layer = type(layers[-1])(model.config)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.zero_()
        attention = layer.attention
        attention.self.value.weight.copy_(torch.eye(model.config.hidden_size))
        attention.output.dense.weight.copy_(_MEAN_WEIGHT * torch.eye(model.config.hidden_size))
        attention.output.LayerNorm.weight.fill_(1.0)
        layer.output.LayerNorm.weight.fill_(1.0)
    layers.append(layer)
    model.config.num_hidden_layers = len(layers)


def _freeze(layer: Any) -> None:
    """Exclude a layer from training and from dropout, and skip its feed-forward part, which is zero."""
    layer.requires_grad_(False)
    layer.feed_forward_chunk = MethodType(_without_feed_forward, layer)
    for module in layer.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0


def _without_feed_forward(layer: Any, attention_output: torch.Tensor) -> torch.Tensor:
    """What `feed_forward_chunk` of a layer of BERT computes if its feed-forward weights are zero."""
    normed: torch.Tensor = layer.output.LayerNorm(attention_output)
    return normed
