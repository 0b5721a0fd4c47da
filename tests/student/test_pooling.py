"""The pooling that a student's weights compute."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
    pipeline,
)

from llkd.config.student import StudentConfig
from llkd.errors import StudentError
from llkd.student.model import load_student, require_loadable, without_adapters
from llkd.student.pooling import can_pool, pooling_of, set_pooling, trained_pooling
from tests.helpers import student_of

LABELS = ["sport", "tech", "trade"]
TEXTS = ["the match was won", "a chip", "the price of the shares rose again and again today"]


def sentence_encoder(folder: Path, student: str, **settings: Any) -> str:
    """A copy of a student with the files of sentence-transformers."""
    shutil.copytree(student, folder)
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling/config.json").write_text(json.dumps(settings))
    return str(folder)


def scale_up(folder: str) -> None:
    """Give the random encoder the activations of a trained one, so that its texts differ."""
    model = BertModel.from_pretrained(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 2:
                parameter.mul_(10)
    model.save_pretrained(folder)


def features(model: Any, tokenizer: Any) -> torch.Tensor:
    """What the last layer reads, for TEXTS padded to one length: shape (3, D)."""
    seen: list[torch.Tensor] = []
    hook = model.classifier.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    with torch.inference_mode():
        model.eval()(**tokenizer(TEXTS, padding=True, return_tensors="pt"))
    hook.remove()
    return seen[0]


def plain_states(folder: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(last hidden states (3, T, D) of the encoder alone, attention mask (3, T))."""
    inputs = AutoTokenizer.from_pretrained(folder)(TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        states = AutoModel.from_pretrained(folder).eval()(**inputs).last_hidden_state
    return states, inputs["attention_mask"]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False}, "mean"),
        ({"pooling_mode_mean_tokens": False, "pooling_mode_cls_token": True}, "cls"),
        ({"pooling_mode": "mean"}, "mean"),
        ({"pooling_mode": "lasttoken"}, None),
        ({"pooling_mode_max_tokens": True}, None),
    ],
)
def test_the_pooling_is_that_of_the_sentence_transformers_files(
    tmp_path: Path, tiny_student: str, settings: dict[str, Any], expected: str | None
) -> None:
    model = sentence_encoder(tmp_path / "encoder", tiny_student, **settings)
    assert trained_pooling(model, None) == expected
    assert pooling_of(student_of(StudentConfig(model=model), LABELS)) == expected
    native = StudentConfig(model=model, pooling="native")
    assert pooling_of(student_of(native, LABELS)) is None


def test_other_models_keep_their_own_pooling(tmp_path: Path, tiny_student: str) -> None:
    assert trained_pooling(tiny_student, None) is None
    assert pooling_of(student_of(StudentConfig(model=tiny_student), LABELS)) is None
    damaged = sentence_encoder(tmp_path / "encoder", tiny_student)
    (tmp_path / "encoder/1_Pooling/config.json").write_text("{")
    assert trained_pooling(damaged, None) is None


def test_the_head_reads_the_mean_of_the_tokens(tmp_path: Path, tiny_student: str) -> None:
    model = sentence_encoder(tmp_path / "encoder", tiny_student, pooling_mode="mean")
    scale_up(model)
    tokenizer, student = load_student(StudentConfig(model=model), LABELS)
    states, mask = plain_states(model)
    mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
    found = features(student, tokenizer)
    assert torch.cosine_similarity(found, mean).min() > 0.98
    first = torch.cosine_similarity(states[:, 0], mean)
    assert (torch.cosine_similarity(found, mean) > first).all()
    assert torch.allclose(found.norm(dim=1), torch.ones(3), atol=0.05)


def test_the_head_reads_the_first_token(tmp_path: Path, tiny_student: str) -> None:
    student = StudentConfig(model=tiny_student, pooling="cls")
    tokenizer, model = load_student(student, LABELS)
    states, _ = plain_states(tiny_student)
    assert torch.cosine_similarity(features(model, tokenizer), states[:, 0]).min() > 0.999
    assert (
        model.config.num_hidden_layers
        == AutoModel.from_pretrained(tiny_student).config.num_hidden_layers
    )


def test_a_saved_student_scores_the_same_by_transformers_alone(
    tmp_path: Path, tiny_student: str
) -> None:
    tokenizer, model = load_student(StudentConfig(model=tiny_student, pooling="mean"), LABELS)
    with torch.inference_mode():
        inputs = tokenizer(TEXTS, padding=True, return_tensors="pt")
        expected = torch.softmax(model.eval()(**inputs).logits, dim=-1)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    classify = pipeline("text-classification", str(tmp_path / "saved"), top_k=None)
    found = [{each["label"]: each["score"] for each in scores} for scores in classify(TEXTS)]
    for scores, row in zip(found, expected.tolist(), strict=True):
        assert [scores[name] for name in LABELS] == pytest.approx(row, abs=1e-5)


def test_a_saved_student_can_be_trained_again_for_other_labels(
    tmp_path: Path, tiny_student: str
) -> None:
    tokenizer, model = load_student(StudentConfig(model=tiny_student, pooling="mean"), LABELS)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    _, again = load_student(StudentConfig(model=str(tmp_path / "saved")), ["a", "b"])
    assert again.config.num_hidden_layers == model.config.num_hidden_layers
    layer = again.base_model.encoder.layer[-1]
    assert not any(parameter.requires_grad for parameter in layer.parameters())
    plain = again.base_model.encoder.layer[-2]
    assert all(parameter.requires_grad for parameter in plain.parameters())


def test_adapters_leave_the_pooling_alone(tiny_student: str) -> None:
    settings = {"model": tiny_student, "pooling": "mean", "lora": {"rank": 2}}
    model = student_of(StudentConfig.model_validate(settings), LABELS)
    last = model.config.num_hidden_layers - 1
    adapted = {name for name, _ in model.named_parameters() if "lora_" in name}
    assert any("layer.0." in name for name in adapted)
    assert not any(f"layer.{last}." in name for name in adapted)
    merged = without_adapters(model)
    assert pooling_of(merged) == "mean"


def tiny(settings: type[Any], **sizes: Any) -> Any:
    return settings(vocab_size=50, num_labels=3, pad_token_id=1, **sizes)


def test_the_pooling_of_roberta() -> None:
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = tiny(RobertaConfig, intermediate_size=32, **sizes)
    model = RobertaForSequenceClassification(config)
    assert can_pool(model)
    ids = torch.arange(2, 20).reshape(2, 9)
    mask = torch.ones_like(ids)
    with torch.inference_mode():
        mean = model.eval().base_model(ids, mask).last_hidden_state.mean(dim=1)
    set_pooling(model, "mean")
    with torch.inference_mode():
        pooled = model.eval().base_model(ids, mask).last_hidden_state[:, 0]
    assert torch.cosine_similarity(pooled, mean).min() > 0.98


def test_layers_of_another_kind_are_refused() -> None:
    config = tiny(DistilBertConfig, dim=16, hidden_dim=32, n_layers=1, n_heads=2)
    model = DistilBertForSequenceClassification(config)
    assert not can_pool(model)
    with pytest.raises(StudentError, match=r"mean cannot be set for DistilBert.*pooling: native"):
        set_pooling(model, "mean")


def test_a_pooling_that_cannot_be_set_is_told_before_labelling(
    tmp_path: Path, tiny_student: str
) -> None:
    config = tiny(DistilBertConfig, dim=16, hidden_dim=32, n_layers=1, n_heads=2)
    DistilBertForSequenceClassification(config).save_pretrained(tmp_path / "distil")
    AutoTokenizer.from_pretrained(tiny_student).save_pretrained(tmp_path / "distil")
    require_loadable(StudentConfig(model=str(tmp_path / "distil")))
    with pytest.raises(StudentError, match="student.pooling: cls cannot be set"):
        require_loadable(StudentConfig(model=str(tmp_path / "distil"), pooling="cls"))
    tokenizer, model = load_student(StudentConfig(model=tiny_student, pooling="mean"), LABELS)
    model.save_pretrained(tmp_path / "saved")
    tokenizer.save_pretrained(tmp_path / "saved")
    for load in (require_loadable, lambda student: load_student(student, LABELS)):
        load(StudentConfig(model=str(tmp_path / "saved"), pooling="mean"))
        with pytest.raises(StudentError, match="is cls, but student.model was saved with mean"):
            load(StudentConfig(model=str(tmp_path / "saved"), pooling="cls"))


def test_onnx_scores_a_pooled_student_the_same(tmp_path: Path, tiny_student: str) -> None:
    from llkd.results.onnx import write_onnx

    tokenizer, model = load_student(StudentConfig(model=tiny_student, pooling="mean"), LABELS)
    torch.nn.init.normal_(model.classifier.weight, std=10)  # so that texts differ
    assert write_onnx(tokenizer, model, tmp_path / "m.onnx", TEXTS, 24) < 1e-4


def test_bert_itself_can_pool() -> None:
    config = tiny(
        BertConfig, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32
    )
    assert can_pool(AutoModelForSequenceClassification.from_config(config))
