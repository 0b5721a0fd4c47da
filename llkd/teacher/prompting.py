"""From the task and a tokenizer to prompts as token ids.

The prompt is cut in three: what stands before the text, the text, what stands after it. The
first and the last are the same for every row and tokenised once; the text is tokenised as plain
text, so that a row that spells a special token or a role marker cannot forge the prompt's
structure.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llkd.config import TaskConfig, TeacherConfig
from llkd.core.prompts import TEXT_SLOT, chat_turns, completion_text, without_system
from llkd.errors import TeacherError


@dataclass(frozen=True)
class PromptTemplate:
    """The tokens around a text, and the tokens that answer."""

    prefix: tuple[int, ...]
    suffix: tuple[int, ...]
    label_tokens: tuple[int, ...]
    """The first token of each label as it follows the suffix, in the order of `task.labels`."""

    def prompt(self, text_tokens: Sequence[int]) -> list[int]:
        """The token ids of a whole prompt."""
        return [*self.prefix, *text_tokens, *self.suffix]

    @property
    def fixed_tokens(self) -> int:
        """Tokens of a prompt without its text."""
        return len(self.prefix) + len(self.suffix)


def make_template(teacher: TeacherConfig, task: TaskConfig, tokenizer: Any) -> PromptTemplate:
    """Tokenise the fixed parts of the prompt and the labels.

    Raises:
        TeacherError: the model has no chat template though `chat` is asked for, or two labels
            begin with the same token.
    """
    before, after, separator = _prompt_text(teacher, task, tokenizer)
    suffix = _encode(tokenizer, after)
    return PromptTemplate(
        tuple(_encode(tokenizer, before)),
        tuple(suffix),
        tuple(_label_tokens(tokenizer, after, suffix, separator, task.label_names)),
    )


def encode_texts(tokenizer: Any, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
    """Tokens of each text as plain text, cut to the first `max_tokens`."""
    # A token stands for at least one character, mostly for several: a long text need not be
    # tokenised to its end to find its first tokens.
    characters = max_tokens * 32
    encoded = tokenizer(
        [text[:characters] for text in texts],
        add_special_tokens=False,
        split_special_tokens=True,
        truncation=True,
        max_length=max_tokens,
    )
    return list(encoded["input_ids"])


def _prompt_text(teacher: TeacherConfig, task: TaskConfig, tokenizer: Any) -> tuple[str, str, str]:
    """What stands before and after the text, and what parts a label from the latter."""
    examples = [(example.text, example.label) for example in task.examples]
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if teacher.prompt_format == "chat" and not has_template:
        raise TeacherError(
            f"teacher.prompt_format is chat, but {teacher.model} has no chat template; "
            "use completion or auto"
        )
    if teacher.prompt_format == "completion" or not has_template:
        whole = completion_text(task.instruction, task.labels, examples)
        bos = tokenizer.bos_token if _adds_bos(tokenizer) else ""
        before, after = f"{bos or ''}{whole}".split(TEXT_SLOT)
        return before, after, " "
    turns = chat_turns(task.instruction, task.labels, examples)
    try:
        whole = _apply_template(tokenizer, turns)
    except Exception:  # jinja raises what the template says: often, that it knows no system role
        whole = _apply_template(tokenizer, without_system(turns))
    before, after = whole.split(TEXT_SLOT)
    return before, after, ""


def _apply_template(tokenizer: Any, turns: Sequence[Any]) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _adds_bos(tokenizer: Any) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]


def _encode(tokenizer: Any, text: str) -> list[int]:
    """Tokens of a part of the prompt that we wrote: special tokens count as such."""
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _label_tokens(
    tokenizer: Any, after: str, suffix: list[int], separator: str, labels: Sequence[str]
) -> list[int]:
    """The first token of each label where it follows the prompt.

    Prompt and label are tokenised together, because a tokenizer may treat a word at the start
    of a text otherwise than the same word inside one.
    """
    first: dict[int, str] = {}
    for label in labels:
        tokens = _encode(tokenizer, after + separator + label)
        if tokens[: len(suffix)] != suffix or len(tokens) == len(suffix):
            raise TeacherError(
                f"The tokenizer merges label {label!r} with the end of the prompt, so its "
                "log-probability cannot be read; use the other teacher.prompt_format"
            )
        token = tokens[len(suffix)]
        if token in first:
            raise TeacherError(
                f"Labels {first[token]!r} and {label!r} begin with the same token "
                f"{tokenizer.decode([token])!r} for this teacher, so that it cannot tell them "
                "apart; rename one of them in task.labels"
            )
        first[token] = label
    return list(first)
