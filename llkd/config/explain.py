"""Turns pydantic's validation errors into messages for the author of a config."""

import difflib
import re
from collections.abc import Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

from llkd.config.section import check_no_secrets, section_in

_WORDS = {
    "int_type": "must be a whole number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "float_type": "must be a number",
    "float_parsing": "must be a number",
    "finite_number": "must be a finite number",
    "string_type": "must be text",
    "bool_type": "must be true or false",
    "bool_parsing": "must be true or false",
    "tuple_type": "must be a list",
    "dict_type": "must be a mapping of names to values",
    "model_type": "must be a section of settings",
    "string_too_short": "must not be empty",
}
"""The message for each of pydantic's error types."""

_ALTERNATIVE = re.compile(r"constrained-.*|str|int|\[key\]|(tuple|list|dict|literal)\[.*\]")
"""The entries pydantic adds to a location for mapping keys and for the members of a union."""


def explained(section: type[BaseModel], error: ValidationError) -> list[str]:
    """One line per wrong setting: its key, the problem, and its value unless it may be a secret.

    Args:
        section: the section that was validated; its settings are suggested for unknown ones.
        error: the validation error.
    """
    found: dict[str, list[str]] = {}
    values: dict[str, Any] = {}
    for problem in error.errors():
        location = [
            part
            for number, part in enumerate(map(str, problem["loc"]))
            if not (number and _ALTERNATIVE.fullmatch(part))
        ]
        if problem["type"] == "missing" and location[-1].isdigit():
            *location, place = location
            words = f"must have at least {int(place) + 1}"
        else:
            words = _words(section, location, problem)
        where = ".".join(location) or "config"
        if words not in found.setdefault(where, []):
            found[where].append(words)
        if problem["type"] not in ("missing", "extra_forbidden"):
            values[where] = problem["input"]
    return [
        f"{where}: {' or '.join(words)}{_shown(values, where)}" for where, words in found.items()
    ]


def _words(section: type[BaseModel], location: Sequence[str], problem: Any) -> str:
    if problem["type"] == "extra_forbidden":
        known = _known_keys(section, location[:-1])
        close = difflib.get_close_matches(location[-1], known, n=1)
        hint = f"did you mean {close[0]!r}?" if close else f"known here: {', '.join(known)}"
        return f"no such setting; {hint}"
    if problem["type"] == "missing":
        return "missing"
    if problem["type"] == "too_short":
        return f"must have at least {problem['ctx']['min_length']}"
    if problem["type"] == "too_long":
        return f"must have at most {problem['ctx']['max_length']}"
    words = _WORDS.get(problem["type"])
    return words or str(problem["msg"]).removeprefix("Value error, ").replace(
        "Input should be", "must be"
    )


def _shown(values: dict[str, Any], where: str) -> str:
    value = values.get(where)
    if where not in values or isinstance(value, dict | BaseModel):
        return ""
    try:
        check_no_secrets({where: value})
    except ValueError:
        return ""
    text = repr(value)
    return f" (it is {text if len(text) <= 120 else text[:117] + '...'})"


def _known_keys(section: Any, location: Sequence[str]) -> list[str]:
    """The settings of the section at a location relative to `section`."""
    for part in location:
        field = getattr(section, "model_fields", {}).get(part)
        if field is not None:
            section = section_in(field.annotation)
        elif not part.isdigit():  # a number is an index into a list of sections
            return []
    return list(getattr(section, "model_fields", {}))
