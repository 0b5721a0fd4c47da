"""Chat templates by structure: what each makes of the prompt, by the real renderer of transformers."""

import copy
from typing import Any

import pytest

from llkd.core.prompts import TEXT_SLOT, chat_turns, instructions
from llkd.errors import TeacherError
from llkd.teacher.chat_template import fault_of, render
from llkd.teacher.prompting import make_prompter
from tests.teacher.test_prompting import TASK, prompts, teacher

TURN = "{{ '<' + m.role + '>' + m.content + '</s>' }}"
ASSISTANT = "{% if add_generation_prompt %}<assistant>{% endif %}"
LOOP = "{% for m in messages %}" + TURN + "{% endfor %}" + ASSISTANT
REFUSED = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}" + LOOP
)
ALTERNATING = (
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Roles must alternate') }}{% endif %}" + TURN + "{% endfor %}" + ASSISTANT
)
IGNORED = (
    "{% for m in messages %}{% if m.role == 'user' %}" + TURN + "{% elif m.role == 'assistant' %}"
    + TURN + "{% endif %}{% endfor %}" + ASSISTANT
)  # fmt: skip
DROPPED = "{% if messages[0].role == 'system' %}{% set messages = messages[1:] %}{% endif %}" + LOOP
MERGED = (
    "{% set ns = namespace(system='') %}{% for m in messages %}{% if m.role == 'system' %}"
    "{% set ns.system = m.content + '\\n' %}{% elif m.role == 'user' %}{{ '<user>' + ns.system + m.content }}"
    "{% set ns.system = '' %}{% else %}" + TURN + "{% endif %}{% endfor %}" + ASSISTANT
)
TRIMMED = LOOP.replace("m.content", "m.content | trim") + "\n"
PARTS = (
    "{% for m in messages %}{{ '<' + m.role + '>' }}{% for part in m.content %}"
    "{% if part.type == 'text' %}{{ part.text }}{% endif %}{% endfor %}{% endfor %}" + ASSISTANT
)
TOOLS = "{% if tools %}{{ '<tools>' + (tools | tojson) }}{% endif %}" + LOOP
DEAF = "{% for m in messages %}{% if m.role == 'assistant' %}" + TURN + "{% endif %}{% endfor %}"
LAST = "{{ messages[-1].content }}" + ASSISTANT
TWICE = LOOP + "{{ messages[0].content }}"


def turns() -> list[Any]:
    answers = [example.label for example in TASK.examples]
    return chat_turns(instructions(TASK.instruction, TASK.labels), answers)


def with_template(tokenizer: Any, template: Any) -> Any:
    changed = copy.copy(tokenizer)
    changed.chat_template = template
    return changed


@pytest.mark.parametrize(
    ("template", "begins"),
    [
        (LOOP, "<system>Which topic?"),
        (TOOLS, "<system>Which topic?"),
        (TRIMMED, "<system>Which topic?"),
        (PARTS, "<system>Which topic?"),
        (MERGED, "<user>Which topic?"),
        (REFUSED, "<user>Which topic?"),
        (ALTERNATING, "<user>Which topic?"),
        (IGNORED, "<user>Which topic?"),
        (DROPPED, "<user>Which topic?"),
    ],
    ids=["kept", "tools", "trimmed", "parts", "merged", "refused", "alternating", "ignored", "dropped"],
)  # fmt: skip
def test_nothing_of_the_prompt_is_lost(smollm: Any, template: str, begins: str) -> None:
    prompt = render(teacher(), with_template(smollm, template), turns())
    assert prompt.startswith(begins)
    assert prompt.count("Which topic?") == 1
    assert prompt.count(TEXT_SLOT) == len(TASK.examples) + 1
    order = [prompt.index(f"- {name}") for name in TASK.label_names]
    order += [prompt.index(f">{TASK.examples[0].label}"), prompt.rindex(TEXT_SLOT)]
    assert order == sorted(order)
    assert prompt.rstrip().endswith("<assistant>")
    whole = prompts(make_prompter(teacher(), TASK, with_template(smollm, template)), "b c")[0]
    assert "Which topic?" in whole
    assert "Text: b c\nLabel:" in whole


@pytest.mark.parametrize(
    ("template", "words"),
    [
        (DEAF, "leaves out, or moves, the user message 'Which topic?'"),
        (LAST, "leaves out, or moves, the user message 'Which topic?'"),
        (TWICE, "repeats a message"),
        ("{{ raise_exception('Never') }}", "it fails: Never"),
    ],
)
def test_a_template_that_cannot_hold_the_prompt_is_refused(
    smollm: Any,
    template: str,
    words: str,
) -> None:
    with pytest.raises(TeacherError, match="cannot hold the prompt") as raised:
        render(teacher(), with_template(smollm, template), turns())
    assert words in str(raised.value)
    assert "teacher.prompt_format" in str(raised.value)


def test_what_is_lost_is_named_with_the_rendered_prompt(smollm: Any) -> None:
    with pytest.raises(TeacherError, match="It renders:\n<assistant>") as raised:
        render(teacher(), with_template(smollm, ASSISTANT), turns())
    assert "\x00" not in str(raised.value)


@pytest.mark.parametrize(
    ("opening", "end"),
    [
        ("<think>", "<think>\n\n</think>\n\n"),
        ("<think>\\n", "<think>\n\n</think>\n\n"),
        ("<seed:think>", "<seed:think>\n\n</seed:think>\n\n"),
        ("<think>\\n\\n</think>\\n\\n", "<think>\n\n</think>\n\n"),
    ],
)
def test_a_thought_is_closed_before_the_answer(smollm: Any, opening: str, end: str) -> None:
    template = LOOP.replace("<assistant>", "{{ '<assistant>" + opening + "' }}")
    prompt = render(teacher(), with_template(smollm, template), turns())
    assert prompt.endswith("<assistant>" + end)
    assert prompt.count("</") == len(turns()) + 1


def test_a_template_is_told_not_to_think_unless_the_config_says_so(smollm: Any) -> None:
    for variable in ("enable_thinking", "thinking"):
        template = (
            LOOP + "{% if " + variable + " is not defined or " + variable + " %}<think>{% endif %}"
        )
        tokenizer = with_template(smollm, template)
        assert render(teacher(), tokenizer, turns()).endswith("<assistant>")
        thinks = teacher(chat_template_kwargs={variable: True})
        assert render(thinks, tokenizer, turns()).endswith("<think>\n\n</think>\n\n")


def test_the_date_is_the_configs_on_every_day(smollm: Any) -> None:
    dated = """{{ strftime_now( "%d %b %Y") + "|" + strftime_now('%Y') + '|' }}""" + LOOP
    tokenizer = with_template(smollm, dated)
    assert render(teacher(), tokenizer, turns()).startswith("01 Jan 2026|2026|<system>")
    later = teacher(today="2030-12-24")
    assert render(later, tokenizer, turns()).startswith("24 Dec 2030|2030|<system>")
    with pytest.raises(ValueError, match=r"must be a date such as '2026-01-31', not 'today'"):
        teacher(today="today")


def test_a_text_in_the_prompt_twice_is_a_fault() -> None:
    both = "".join(turn.content for turn in turns())
    assert fault_of(both, turns()) is None
    assert fault_of(both + TEXT_SLOT, turns()) == "repeats a message"


def test_turns_in_another_order_are_a_fault() -> None:
    backwards = "".join(turn.content for turn in reversed(turns()))
    fault = fault_of(backwards, turns())
    assert fault is not None
    assert fault.startswith("leaves out, or moves, the user message")
