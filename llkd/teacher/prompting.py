"""From the task and a tokenizer to prompts as token ids.

What stands around the texts is tokenised once, with its special tokens; every text, an example's
or the row's, is tokenised as plain text. So a text that spells a special token or a role marker
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
    without_system,
)
from llkd.core.verbalizers import (
    CODES,
    Verbalizer,
    clashing_labels,
    first_token_verbalizer,
    sequence_verbalizer,
)
from llkd.errors import TeacherError
from llkd.teacher.examples import NearestExamples

CHARACTERS_PER_TOKEN = 32
"""A token stands for so many characters at most, in running text: a long text need not be
tokenised to its end to find its first tokens."""
USUAL_CHARACTERS_PER_TOKEN = 6
"""Enough for most texts; the others are tokenised again, and longer."""
MARGIN = 8
"""Tokens before the place where a text was cut that do not feel the cut."""

MOST_TOKENS_AT_ONCE = 128
"""Tokens whose log-probabilities vLLM gives for one request."""


@dataclass(frozen=True)
class Prompter:
    """Makes the prompts of a task for one tokenizer, and knows how the labels are said in them."""

    teacher: TeacherConfig
    task: TaskConfig
    tokenizer: Any
    verbalizer: Verbalizer
    reason: str
    """Why this verbalizer."""
    codes: Mapping[str, str] | None
    """What the model answers in place of each label, under `code`."""
    cut_from_end: int
    """Tokens left out at the prompt's end, because some label's tokens merge with them."""
    nearest: NearestExamples | None = None
    """Finds more examples for each text."""

    @cached_property
    def fixed(self) -> tuple[list[int], list[int]]:
        """The tokens before and after the text, with the task's examples."""
        return self.around(self.task.examples)

    def room(self, max_model_len: int, around: tuple[list[int], list[int]] | None = None) -> int:
        """Tokens of text that fit into the model beside all the rest.

        Raises:
            TeacherError: none do.
        """
        before, after = around or self.fixed
        answer = 1 + max(len(question.path) for question in self.verbalizer.questions)
        room = max_model_len - len(before) - len(after) - answer
        if room < 1:
            raise TeacherError(
                f"The prompt without any text has {len(before) + len(after)} tokens, and "
                f"{self.teacher.model} takes {max_model_len}",
                "Shorten the instruction or the examples, or raise engine_args.max_model_len.",
            )
        return room

    def prompts(self, texts: Sequence[str], max_model_len: int) -> list[list[int] | None]:
        """The token ids of each text's prompt; None for a text that has no tokens."""
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

    def texts(self, texts: Sequence[str], most_tokens: int) -> list[list[int]]:
        """Tokens of each row's text, cut to the budget as `teacher.truncation` says."""
        most = min(most_tokens, self.teacher.max_text_tokens)
        if self.teacher.truncation == "head":
            return self._heads(texts, most)
        head, tail = most - most // 2, most // 2
        return self._head_and_tail(texts, head, tail)

    def _heads(self, texts: Sequence[str], most: int) -> list[list[int]]:
        """The first tokens of each text, of which no more is tokenised than it takes."""
        characters = (most + MARGIN) * USUAL_CHARACTERS_PER_TOKEN
        found = self._plain([text[:characters] for text in texts])
        # The last tokens of a text that was cut short may be others than the whole text's.
        short = [
            row for row, tokens in enumerate(found)
            if len(texts[row]) > characters and len(tokens) < most + MARGIN
        ]  # fmt: skip
        characters = most * CHARACTERS_PER_TOKEN
        for row, tokens in zip(
            short, self._plain([texts[row][:characters] for row in short]), strict=True
        ):
            found[row] = tokens
        return [tokens[:most] for tokens in found]

    def _head_and_tail(self, texts: Sequence[str], head: int, tail: int) -> list[list[int]]:
        characters = max(head, tail) * CHARACTERS_PER_TOKEN
        long = [len(text) > 2 * characters for text in texts]
        heads = self._plain(
            [text[:characters] if cut else text for text, cut in zip(texts, long, strict=True)]
        )
        tails = iter(
            self._plain([text[-characters:] for text, cut in zip(texts, long, strict=True) if cut])
        )
        found = []
        for tokens, cut in zip(heads, long, strict=True):
            rest = next(tails) if cut else tokens
            whole = not cut and len(tokens) <= head + tail
            found.append(tokens if whole else tokens[:head] + rest[len(rest) - tail :])
        return found

    def _plain(self, texts: Sequence[str]) -> list[list[int]]:
        """Tokens of texts as they follow "Text:", a space before the first word."""
        if not texts:
            return []
        space = "" if _adds_space(self.tokenizer) else " "
        encoded = self.tokenizer(
            [space + text if text else "" for text in texts],
            add_special_tokens=False,
            split_special_tokens=True,
        )
        return list(encoded["input_ids"])

    def _pieces(self, examples: Sequence[Example]) -> list[str]:
        """The prompt cut at its slots, the space before a slot left to the text."""
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
    most_tokens: int = MOST_TOKENS_AT_ONCE,
) -> Prompter:
    """Choose how the labels are said, by `teacher.verbalizer`.

    Args:
        teacher: its settings.
        task: the labels.
        tokenizer: a transformers tokenizer.
        most_tokens: tokens that the engine can be asked for at once.

    Raises:
        TeacherError: the model has no chat template though `chat` is asked for, or the labels
            cannot be told apart.
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
        verbalizer = first_token_verbalizer("code", tokens, most_tokens)
        return Prompter(teacher, task, tokenizer, verbalizer, reason, codes, cut, nearest)
    if wanted == "word":
        verbalizer = first_token_verbalizer("word", words, most_tokens)
    else:
        verbalizer = sequence_verbalizer(words, tokenizer.eos_token_id, most_tokens)
    return Prompter(teacher, task, tokenizer, verbalizer, reason, None, cut, nearest)


def _choose(
    words: Mapping[str, Sequence[int]],
) -> tuple[Literal["word", "sequence"], str]:
    """What `auto` takes, and why."""
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
        TeacherError: `chat` is asked for and the model has no chat template.
    """
    system = instructions(task.instruction, task.labels, codes)
    if not uses_chat(teacher, tokenizer):
        bos = tokenizer.bos_token if _adds_bos(tokenizer) else None
        return (bos or "") + completion_text(system, answers)
    turns = chat_turns(system, answers)
    try:
        return _apply_template(tokenizer, turns)
    except Exception:  # jinja raises what the template says: often, that it knows no system role
        return _apply_template(tokenizer, without_system(turns))


def uses_chat(teacher: TeacherConfig, tokenizer: Any) -> bool:
    """Whether the prompt is a conversation.

    Raises:
        TeacherError: it is asked for and the model has no chat template.
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
    """The tokens of each label where it follows the prompt, and how many tokens of the prompt's
    end they replace.

    Prompt and label are tokenised together, because a tokenizer may treat a word at the start of
    a text otherwise than inside one, or merge it with what stands before it. Where any label
    merges, all labels begin at the token before.
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
    """Tokens at the start that are the same; the second keeps at least one of its own."""
    pairs = islice(zip(first, second, strict=False), max(len(second) - 1, 0))
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))


def _single_token_codes(
    teacher: TeacherConfig, task: TaskConfig, tokenizer: Any
) -> tuple[dict[str, str], dict[str, list[int]], int]:
    """(code of each label, its tokens, tokens cut from the prompt's end)."""
    # As if each code were a label: which of them are one token where an answer stands?
    trial = task.model_copy(update={"labels": dict.fromkeys(CODES)})
    tokens, cut = label_tokens(teacher, trial, tokenizer, None)
    found: dict[int, str] = {}
    for code in CODES:
        if len(tokens[code]) == 1:
            found.setdefault(tokens[code][0], code)
    if len(found) < len(task.labels):
        raise TeacherError(
            f"teacher.verbalizer code: this teacher's tokenizer has {len(found)} codes of "
            f"one token, and there are {len(task.labels)} labels",
            "Use sequence.",
        )
    codes = dict(zip(task.labels, found.values(), strict=False))
    return codes, {name: tokens[code] for name, code in codes.items()}, cut


def encode(tokenizer: Any, text: str, first: bool = False) -> list[int]:
    """Tokens of a part of the prompt that we wrote: special tokens count as such.

    Args:
        tokenizer: a transformers tokenizer.
        text: the part.
        first: whether it begins the prompt. A tokenizer that puts a space before every text must
            not do so in the middle of one.
    """
    if first or not _adds_space(tokenizer):
        return list(tokenizer(text, add_special_tokens=False)["input_ids"])
    before = list(tokenizer(_ANCHOR, add_special_tokens=False)["input_ids"])
    return list(tokenizer(_ANCHOR + text, add_special_tokens=False)["input_ids"])[len(before) :]


_ANCHOR = ";"


def _adds_space(tokenizer: Any) -> bool:
    """Whether it puts a space before every text, as those made by SentencePiece often do."""
    tokens = tokenizer(_ANCHOR, add_special_tokens=False)["input_ids"]
    return str(tokenizer.convert_ids_to_tokens(tokens)[0]).startswith("\u2581")


def _apply_template(tokenizer: Any, turns: Sequence[Any]) -> str:
    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))


def _adds_bos(tokenizer: Any) -> bool:
    bos = tokenizer.bos_token_id
    return bos is not None and tokenizer("a")["input_ids"][:1] == [bos]
