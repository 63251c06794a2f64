"""How a mapping speaks of claims: patterns that they are compared with, templates that they fill.

**Patterns.** A value without ``*`` is compared as it is. ``*`` stands for any characters but ``/`` and
``:``, ``**`` for any characters; both may stand for none. There are no other wildcards and no regular
expressions, and a match costs at most pattern times claim, whatever the two are (I05, I17).

**Templates.** ``{claim}`` is filled in; everything else is literal. Two placeholders have a ``/`` between
them, and what fills one of several parts must not hold a ``/``, so that two identities never make the same
text by pushing a separator around (I04).

**Claims** are named by their name at the top (or a flattened one, :mod:`broker.identity.issuers`), or by a
JSON Pointer, which begins with ``/``. Text, integers and booleans can be compared; anything else, and
what is absent, fits nothing.

**Source**: RFC 6901.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Final

from broker import limits
from broker.canonical import Json
from broker.errors import InvalidRequest
from broker.identity.issuers import refuse_subject

_CLAIM_NAME: Final = re.compile(r"[!-z|~]{1,256}")
_POINTER: Final = re.compile(r"(?:/(?:[^~/]|~[01])*)+")
_INDEX: Final = re.compile(r"0|[1-9][0-9]{0,5}")
_LITERAL: Final = re.compile(r"[A-Za-z0-9._@+/:-]*")
_PLACEHOLDER: Final = re.compile(r"\{([^{}]*)\}")
_SEPARATORS: Final = "/:"
_INSIDE: Final = "*"
_ACROSS: Final = "**"


def invalid_mapping(why: str) -> InvalidRequest:
    """The refusal of a mapping that breaks a rule of its format."""
    return InvalidRequest("the mapping is not valid", why=why)


# -- patterns -----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pattern:
    """A value that a claim is compared with; see the module's text for ``*`` and ``**``."""

    text: str

    @property
    def exact(self) -> bool:
        """Whether it is one value."""
        return "*" not in self.text

    @property
    def binds(self) -> bool:
        """Whether it is more than wildcards, which only say that the claim is there."""
        return bool(self.text.replace("*", ""))

    def matches(self, value: str) -> bool:
        """Whether the whole value fits; one longer than ``limits.MAX_CLAIM`` fits nothing."""
        if self.exact:
            return value == self.text
        if len(value) > limits.MAX_CLAIM:
            return False
        # Bit i of `at` is set when the first i tokens can have matched what came so far. Wildcards are
        # never neighbours, so one shift passes over each that stands for nothing.
        tokens, literals, inside, across = self._bits
        wild = inside | across
        at = 1 | (1 & wild) << 1
        for character in value:
            kept = at & (across if character in _SEPARATORS else wild)
            at = (at & literals.get(character, 0)) << 1 | kept
            at |= (at & wild) << 1
            if not at:
                return False
        return bool(at >> tokens & 1)

    @cached_property
    def _bits(self) -> tuple[int, dict[str, int], int, int]:
        """The number of tokens; for each character, and each wildcard, the bits of its tokens."""
        tokens = re.findall(r"\*\*|.", self.text, re.DOTALL)
        bits: dict[str, int] = {}
        for position, token in enumerate(tokens):
            bits[token] = bits.get(token, 0) | 1 << position
        inside, across = bits.pop(_INSIDE, 0), bits.pop(_ACROSS, 0)
        return len(tokens), bits, inside, across


def parse_pattern(text: object) -> Pattern:
    """A pattern of 1 to ``limits.MAX_MAP_PATTERN`` printable characters, with no three stars in a row.

    Raises:
        InvalidRequest: It is something else.
    """
    if not isinstance(text, str) or not 0 < len(text) <= limits.MAX_MAP_PATTERN or not text.isprintable():
        raise invalid_mapping(
            f"a value to match is not printable text of 1 to {limits.MAX_MAP_PATTERN} characters"
        )
    if "***" in text:
        raise invalid_mapping("a value to match has more than two stars in a row")
    return Pattern(text)


# -- templates ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Template:
    """Literal text with ``{claim}`` in it."""

    text: str

    @property
    def sample(self) -> str:
        """The text with ``x`` for every claim."""
        return _PLACEHOLDER.sub("x", self.text)

    def fill(self, claims: Json) -> str:
        """The text with its claims filled in.

        Raises:
            InvalidRequest: A claim is absent, is empty or is no single value, or has a ``/`` where the
                template is more than that claim.
        """
        alone = _PLACEHOLDER.fullmatch(self.text) is not None

        def value_of(found: re.Match[str]) -> str:
            value = find_claim(claims, found[1])
            if not value:
                raise refuse_subject("a claim that the rule needs is absent or not a single value")
            if "/" in value and not alone:
                raise refuse_subject("a claim that the rule puts beside others has a '/' in it")
            return value

        return _PLACEHOLDER.sub(value_of, self.text)


def parse_template(text: object) -> Template:
    """A template of at most ``limits.MAX_MAP_PATTERN`` characters.

    Raises:
        InvalidRequest: Empty, of other characters, with stray braces, or with two placeholders that have
            no ``/`` between them.
    """
    if not isinstance(text, str) or not 0 < len(text) <= limits.MAX_MAP_PATTERN:
        raise invalid_mapping(f"a template is not text of 1 to {limits.MAX_MAP_PATTERN} characters")
    # Odd places are the names of claims, even ones the literals around them.
    parts = _PLACEHOLDER.split(text)
    if not all(_LITERAL.fullmatch(literal) for literal in parts[::2]):
        raise invalid_mapping("a template has letters, digits and ._@+/:- around its {claims}")
    for name in parts[1::2]:
        check_claim_name(name)
    if not all("/" in literal for literal in parts[2:-1:2]):
        raise invalid_mapping("two placeholders of a template have no '/' between them")
    return Template(text)


def find_claim(claims: Json, name: str) -> str | None:
    """The claim as text: text as it is, integers in decimal, ``true`` and ``false``; else None.

    Args:
        claims: A token's claims.
        name: A name at the top, or a JSON Pointer.

    Source: RFC 6901 section 4.
    """
    value: Any = claims
    steps = name.split("/")[1:] if name.startswith("/") else None
    if steps is None:
        value = claims.get(name)
    for step in steps or ():
        value = _step(value, step.replace("~1", "/").replace("~0", "~"))
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and value.bit_length() <= 64:
        return str(value)
    return value if isinstance(value, str) else None


def _step(value: Any, name: str) -> Any:
    if isinstance(value, dict):
        return value.get(name)
    if isinstance(value, list) and _INDEX.fullmatch(name) and int(name) < len(value):
        return value[int(name)]
    return None


def check_claim_name(name: object) -> str:
    """The name of a claim, if it is one.

    Raises:
        InvalidRequest: Of other characters or too long, or begins with ``/`` and is not a JSON Pointer.
    """
    if not isinstance(name, str) or not _CLAIM_NAME.fullmatch(name):
        raise invalid_mapping(
            "the name of a claim is not printable text of 1 to 256 characters without braces"
        )
    if name.startswith("/") and not _POINTER.fullmatch(name):
        raise invalid_mapping("the name of a claim that begins with '/' is not a JSON Pointer")
    return name
