"""Builds prompts as token ids from a task and a tokenizer.

The template around the texts is tokenised once, with special tokens. Every text, of an example or
of the row, is tokenised as plain text, so a text that spells a special token or a role marker
cannot forge the prompt's structure.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, takewhile
from typing import Any, Literal

from llkd.config.run import Example, TaskConfig, TeacherConfig
from llkd.core.prompts import (
    TEXT_SLOT,
    chat_turns,
    completion_text,
    instructions,
)
from llkd.core.verbalizers import (
    CODES,
    Verbalizer,
    clashing_labels,
    first_token_verbalizer,
    sequence_verbalizer,
)
from llkd.errors import TeacherError
from llkd.teacher.chat_template import render
from llkd.teacher.examples import NearestExamples
from llkd.teacher.tokenising import encode, encode_ends, encode_heads

MAX_TOKENS_AT_ONCE = 128
"""Maximum tokens whose log-probabilities vLLM returns for one request."""


@dataclass(frozen=True)
class Prompter:
    """Builds the prompts of a task for one tokenizer, and holds the verbalizer of its labels."""

    teacher: TeacherConfig
    task: TaskConfig
    tokenizer: Any
    verbalizer: Verbalizer
    reason: str
    """Why this verbalizer was chosen."""
    codes: Mapping[str, str] | None
    """The code of each label, for the verbalizer `code`."""
    cut_from_end: int
    """Tokens dropped at the prompt's end, because they merge with the first token of a label."""
    nearest: NearestExamples | None = None
    """Finds additional examples for each text."""

    @cached_property
    def fixed(self) -> tuple[list[int], list[int]]:
        """The tokens before and after the text, with the task's examples."""
        return self.around(self.task.examples)

    def room(self, max_model_len: int, around: tuple[list[int], list[int]] | None = None) -> int:
        """Number of text tokens that fit into the model's context beside the rest of the prompt.

        Raises:
            TeacherError: not even one fits.
        """
        before, after = around or self.fixed
        answer = 1 + max(len(question.path) for question in self.verbalizer.questions)
        room = max_model_len - len(before) - len(after) - answer
        if room < 1:
            raise TeacherError(
                f"The prompt without any text has {len(before) + len(after)} tokens, but "
                f"{self.teacher.model} accepts {max_model_len}",
                "Shorten the instruction or the examples, or raise engine_args.max_model_len.",
            )
        return room

    def prompts(self, texts: Sequence[str], max_model_len: int) -> list[list[int] | None]:
        """The token ids of each text's prompt; None for a text without tokens."""
        if self.nearest is None:
            before, after = self.fixed
            return [
                [*before, *tokens, *after] if tokens else None
                for tokens in self.texts(texts, self.room(max_model_len))
            ]
        found: list[list[int] | None] = []
        for text, examples in zip(texts, self.nearest.of(texts), strict=True):
            before, after = around = self.around([*self.task.examples, *examples])
            (tokens,) = self.texts([text], self.room(max_model_len, around))
            found.append([*before, *tokens, *after] if tokens else None)
        return found

    def around(self, examples: Sequence[Example]) -> tuple[list[int], list[int]]:
        """The tokens before and after the row's text."""
        *before, after = self._pieces(examples)
        tokens: list[int] = []
        for piece, example in zip(before, [*examples, None], strict=True):
            tokens += encode(self.tokenizer, piece, first=not tokens)
            if example is not None:
                tokens += self.texts([example.text], self.teacher.max_text_tokens)[0]
        return tokens, self._shortened(encode(self.tokenizer, after))

    def texts(self, texts: Sequence[str], max_tokens: int) -> list[list[int]]:
        """Tokens of each row's text, truncated to the budget by `teacher.truncation`."""
        limit = min(max_tokens, self.teacher.max_text_tokens)
        if self.teacher.truncation == "head":
            return encode_heads(self.tokenizer, texts, limit)
        return encode_ends(self.tokenizer, texts, limit - limit // 2, limit // 2)

    def _pieces(self, examples: Sequence[Example]) -> list[str]:
        """The prompt split at its slots; the space before a slot belongs to the text."""
        answers = [self._answer(example.label) for example in examples]
        whole = prompt_text(self.teacher, self.task, self.tokenizer, answers, self.codes)
        *before, after = whole.split(TEXT_SLOT)
        return [*(piece.removesuffix(" ") for piece in before), after]

    def _answer(self, label: str) -> str:
        return label if self.codes is None else self.codes[label]

    def _shortened(self, suffix: list[int]) -> list[int]:
        return suffix[: len(suffix) - self.cut_from_end]


def make_prompter(
    teacher: TeacherConfig,
    task: TaskConfig,
    tokenizer: Any,
    max_tokens: int = MAX_TOKENS_AT_ONCE,
) -> Prompter:
    """Make a prompter with the verbalizer that `teacher.verbalizer` selects.

    Args:
        teacher: settings of the teacher.
        task: the labelling task.
        tokenizer: a transformers tokenizer.
        max_tokens: maximum tokens that the engine scores in one request.

    Raises:
        TeacherError: `chat` is set but the model has no chat template, or the labels cannot be
            distinguished.
    """
    wanted = teacher.verbalizer
    reason = "asked for"
    source = task.examples_from
    nearest = None if source is None else NearestExamples(source, task)
    words, cut = label_tokens(teacher, task, tokenizer, None)
    if wanted == "auto":
        wanted, reason = _choose(words)
    if wanted == "code":
        codes, tokens, cut = _single_token_codes(teacher, task, tokenizer)
        verbalizer = first_token_verbalizer("code", tokens, max_tokens)
        return Prompter(teacher, task, tokenizer, verbalizer, reason, codes, cut, nearest)
    if wanted == "word":
        verbalizer = first_token_verbalizer("word", words, max_tokens)
    else:
        verbalizer = sequence_verbalizer(words, tokenizer.eos_token_id, max_tokens)
    return Prompter(teacher, task, tokenizer, verbalizer, reason, None, cut, nearest)


def _choose(
    words: Mapping[str, Sequence[int]],
) -> tuple[Literal["word", "sequence"], str]:
    """The verbalizer that `auto` selects, and why."""
    clash = clashing_labels(words)
    if clash is None:
        return "word", "every label begins with a token of its own"
    return "sequence", f"labels {clash[0]!r} and {clash[1]!r} begin with the same token"


def prompt_text(
    teacher: TeacherConfig,
    task: TaskConfig,
    tokenizer: Any,
    answers: Sequence[str],
    codes: Mapping[str, str] | None,
) -> str:
    """The whole prompt with a slot for each text, in the format of `teacher.prompt_format`.

    Raises:
        TeacherError: `chat` is set but the model has no chat template, or it cannot hold the prompt.
    """
    system = instructions(task.instruction, task.labels, codes)
    if not uses_chat(teacher, tokenizer):
        bos = tokenizer.bos_token if _adds_bos(tokenizer) else None
        return (bos or "") + completion_text(system, answers)
    return render(teacher, tokenizer, chat_turns(system, answers))


def uses_chat(teacher: TeacherConfig, tokenizer: Any) -> bool:
    """Whether the prompt is a conversation.

    Raises:
        TeacherError: `chat` is set but the model has no chat template.
    """
    has_template = getattr(tokenizer, "chat_template", None) is not None
    if teacher.prompt_format == "chat" and not has_template:
        raise TeacherError(
            f"teacher.prompt_format is chat, but {teacher.model} has no chat template",
            "Use completion or auto.",
        )
    return has_template and teacher.prompt_format != "completion"


def label_tokens(
    teacher: TeacherConfig, task: TaskConfig, tokenizer: Any, codes: Mapping[str, str] | None
) -> tuple[dict[str, list[int]], int]:
    """The tokens of each label after the prompt, and the number of tokens at the prompt's end that
    they replace.

    Prompt and label are tokenised together, because a tokenizer may treat a word at the start of
    a text differently, or merge it with the preceding characters. If any label merges, all labels
    begin one token earlier.
    """
    after = prompt_text(teacher, task, tokenizer, [], codes).split(TEXT_SLOT)[1]
    separator = "" if uses_chat(teacher, tokenizer) else " "
    suffix = encode(tokenizer, after)
    whole = {
        name: encode(tokenizer, after + separator + (name if codes is None else codes[name]))
        for name in task.labels
    }
    shared = min(_shared(suffix, tokens) for tokens in whole.values())
    return {name: tokens[shared:] for name, tokens in whole.items()}, len(suffix) - shared


def _shared(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common prefix; leaves the second at least one token of its own."""
    pairs = islice(zip(first, second, strict=False), max(len(second) - 1, 0))
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _single_token_codes(
    teacher: TeacherConfig, task: TaskConfig, tokenizer: Any
) -> tuple[dict[str, str], dict[str, list[int]], int]:
    """(code of each label, tokens of each label's code, tokens cut from the prompt's end)."""
    # Treat each code as a label, to find those that are a single token in the answer's position.
    trial = task.model_copy(update={"labels": dict.fromkeys(CODES)})
    tokens, cut = label_tokens(teacher, trial, tokenizer, None)
    found: dict[int, str] = {}
    for code in CODES:
        if len(tokens[code]) == 1:
            found.setdefault(tokens[code][0], code)
    if len(found) < len(task.labels):
        raise TeacherError(
            f"teacher.verbalizer code: this teacher's tokenizer has {len(found)} single-token "
            f"codes, but there are {len(task.labels)} labels",
            "Use sequence.",
        )
    codes = dict(zip(task.labels, found.values(), strict=False))
    return codes, {name: tokens[code] for name, code in codes.items()}, cut


def _adds_bos(tokenizer: Any) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
