"""Policy text is measured before Cedar sees it: its parser recurses, and a deep text kills the process.

What is bounded for each policy: brackets inside each other, ``if`` inside ``if``, and operators (a
chain of n operators is a tree n levels deep). Within these limits the parser, the validator and the
evaluator need less than one MiB of stack, measured with the worst mixtures; a thread has two or more.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from typing import Final

from broker import limits
from broker.errors import InvalidRequest, TooLarge

# Comments end where Cedar's end: at a carriage return too, or text could hide behind one.
_TOKEN: Final = re.compile(
    r'//[^\r\n]*+|"(?:[^"\\]++|\\.)*+"|[A-Za-z_][A-Za-z0-9_]*+|&&|\|\||==|!=|<=|>=|::|\S', re.DOTALL
)
_BRACKETS: Final = {")": "(", "]": "[", "}": "{"}
_ANGLES: Final = {**_BRACKETS, ">": "<"}
_WORDS: Final = frozenset({"if", "in", "is", "has", "like", "when", "unless"})
_OPERATORS: Final = _WORDS | set("<>+-*!.[") | {"&&", "||", "==", "!=", "<=", ">="}
_KEPT: Final = frozenset("\t\n\r")
_REFUSED: Final = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})


def parse_text(data: bytes, name: str) -> str:
    """The bytes of a policy or schema file as text that shows what it says.

    Raises:
        InvalidRequest: Not UTF-8, or it holds a control, direction or other invisible character:
            such a text can read differently from what it does.
        TooLarge: Longer than ``limits.MAX_POLICY_TEXT``.
    """
    if len(data) > limits.MAX_POLICY_TEXT:
        raise TooLarge(f"{name} is longer than {limits.MAX_POLICY_TEXT} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise InvalidRequest(f"{name} is not UTF-8") from exc
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.isascii() or not line.isprintable():
            _check_visible(line, f"{name}, line {number}")
    return text


def _check_visible(line: str, where: str) -> None:
    if any(unicodedata.category(ch) in _REFUSED and ch not in _KEPT for ch in line):
        raise InvalidRequest(f"{where} holds a control or invisible character")


def check_policies(text: str, name: str) -> None:
    """No policy of the text is too deep for Cedar's parser, and there are not too many.

    Raises:
        InvalidRequest: Too deep, too many operators, unbalanced brackets, an unfinished string.
        TooLarge: More than ``limits.MAX_POLICIES`` policies.
    """
    stack: list[str] = []
    operators = branches = policies = 0
    for token in _tokens(text, name):
        _track(stack, token, _BRACKETS, name)
        operators += token in _OPERATORS
        branches += token == "if"  # noqa: S105 - a token of the language
        if operators > limits.MAX_POLICY_OPERATORS:
            raise InvalidRequest(f"a policy in {name} has more than {limits.MAX_POLICY_OPERATORS} operators")
        if branches > limits.MAX_POLICY_NESTING:
            raise InvalidRequest(f"a policy in {name} has more than {limits.MAX_POLICY_NESTING} 'if'")
        if token == ";" and not stack:  # noqa: S105
            operators = branches = 0
            policies += 1
    _check_closed(stack, name)
    if policies > limits.MAX_POLICIES:
        raise TooLarge(f"{name} holds more than {limits.MAX_POLICIES} policies")


def check_schema(text: str, name: str) -> None:
    """The schema is not too deep for Cedar's parser and does not declare too much.

    Raises:
        InvalidRequest: Too deep, unbalanced brackets, an unfinished string.
        TooLarge: More than ``limits.MAX_SCHEMA_DECLARATIONS`` declarations.
    """
    stack: list[str] = []
    declarations = 0
    for token in _tokens(text, name):
        _track(stack, token, _ANGLES, name)
        declarations += token == ";"  # noqa: S105
    _check_closed(stack, name)
    if declarations > limits.MAX_SCHEMA_DECLARATIONS:
        raise TooLarge(f"{name} holds more than {limits.MAX_SCHEMA_DECLARATIONS} declarations")


def _tokens(text: str, name: str) -> Iterator[str]:
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token == '"':  # noqa: S105
            raise InvalidRequest(f"{name} holds a string without an end")
        if token[0] != '"' and not token.startswith("//"):
            yield token


def _track(stack: list[str], token: str, pairs: dict[str, str], name: str) -> None:
    if token in pairs.values():
        stack.append(token)
    elif token in pairs and (not stack or stack.pop() != pairs[token]):
        raise InvalidRequest(f"the brackets in {name} do not match")
    if len(stack) > limits.MAX_POLICY_NESTING:
        raise InvalidRequest(f"brackets in {name} are nested deeper than {limits.MAX_POLICY_NESTING} levels")


def _check_closed(stack: list[str], name: str) -> None:
    if stack:
        raise InvalidRequest(f"the brackets in {name} do not match")
