"""Renders a conversation by the model's chat template, and checks that nothing of it is lost.

Templates are programs by many hands. Some refuse a system message, some leave it out without a word, some read
only messages that are lists of parts; some open a thought before the answer, and some insert today's date.
"""

import re
from collections.abc import Sequence
from datetime import date
from typing import Any

from llkd.config.run import TeacherConfig
from llkd.core.prompts import TEXT_SLOT, Turn, without_system
from llkd.errors import TeacherError

WITHOUT_THOUGHT = {"enable_thinking": False, "thinking": False}
"""Variables by which templates are told that the answer comes at once."""
SHOWN = 600
"""Characters of a rendered prompt in an error."""

_NOW = re.compile(r"""strftime_now\(\s*(['"])(.*?)\1\s*\)""")
_OPENED = re.compile(r"<([\w:]*think\w*|thought)>(?!.*</\1>)", re.DOTALL | re.IGNORECASE)


def render(teacher: TeacherConfig, tokenizer: Any, turns: Sequence[Turn]) -> str:
    """The prompt up to the answer, with every turn in it, once and in order.

    Where the template refuses or loses the system message, it is moved into the first user turn. A thought that the
    template opens before the answer is closed, empty.

    Args:
        teacher: whose template it is.
        tokenizer: has a chat template.
        turns: with a slot for each text, from `core.prompts.chat_turns`.

    Raises:
        TeacherError: the template fails, or loses, repeats or reorders a turn.
    """
    failures, faults = [], []
    for candidate in (turns, without_system(turns)):
        for as_parts in (False, True):
            try:
                prompt = _applied(teacher, tokenizer, candidate, as_parts)
            except Exception as error:  # templates raise errors of their own
                failures.append(f"it fails: {error}")
                continue
            fault = fault_of(prompt, candidate)
            if fault is None:
                return _with_closed_thought(prompt, candidate)
            shown = prompt.replace(TEXT_SLOT, "<text>")[:SHOWN]
            faults.append(f"it {fault}. It renders:\n{shown}")
    raise TeacherError(
        f"The chat template of {teacher.model} cannot hold the prompt: {(faults or failures)[-1]}",
        "Set teacher.prompt_format to completion, or use another model.",
    )


def fault_of(prompt: str, turns: Sequence[Turn]) -> str | None:
    """What a rendered prompt does wrong, None if every turn is in it, once and in order.

    Args:
        prompt: rendered from the turns.
        turns: of the conversation.
    """
    place = 0
    for turn in turns:
        content = turn.content.strip()
        found = prompt.find(content, place)
        if found < 0:
            first = content.replace(TEXT_SLOT, "<text>").splitlines()[0]
            return f"leaves out, or moves, the {turn.role} message {first!r}"
        place = found + len(content)
    if prompt.count(turns[0].content.strip()) > 1 or prompt.count(TEXT_SLOT) > sum(
        turn.content.count(TEXT_SLOT) for turn in turns
    ):
        return "repeats a message"
    return None


def _applied(teacher: TeacherConfig, tokenizer: Any, turns: Sequence[Turn], as_parts: bool) -> str:
    """The template applied to messages that are texts, or lists of one part."""

    def content_of(turn: Turn) -> Any:
        return [{"type": "text", "text": turn.content}] if as_parts else turn.content

    template, today = str(tokenizer.chat_template), date.fromisoformat(teacher.today)
    settings: dict[str, Any] = {
        name: value for name, value in WITHOUT_THOUGHT.items() if name in template
    }
    if _NOW.search(template):  # the renderer lets no function of ours into a template
        settings["chat_template"] = _NOW.sub(
            lambda call: repr(today.strftime(call.group(2))), tokenizer.get_chat_template()
        )
    messages = [{"role": turn.role, "content": content_of(turn)} for turn in turns]
    return str(
        tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True,
            **{**settings, **teacher.chat_template_kwargs},
        )
    )  # fmt: skip


def _with_closed_thought(prompt: str, turns: Sequence[Turn]) -> str:
    answer = prompt.rindex(turns[-1].content.strip()) + len(turns[-1].content.strip())
    opened = _OPENED.search(prompt, answer)
    if opened is None:
        return prompt
    return f"{prompt[: opened.end()]}\n\n</{opened.group(1)}>\n\n"
