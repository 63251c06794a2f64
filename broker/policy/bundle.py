"""A bundle: the policies and the schema that decide, as one thing with one digest.

A bundle is text. :func:`compile_bundle` turns it into Cedar's parsed form and is the one definition
of what a valid bundle is; text from outside meets it first in a capped child process
(:mod:`broker.policy.sandbox`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import cedarpy

from broker import canonical, limits, names
from broker.canonical import Json
from broker.errors import InvalidRequest, MalformedRequest, TooLarge
from broker.policy import scan

SCHEMA: Final = "broker/policy-bundle/v1"
SCHEMA_FILE: Final = "schema.cedarschema"
FOLDER: Final = "policies"
_FILE: Final = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}\.cedar")
_MAX_ADVICE: Final = 200
_MAX_SHOWN: Final = 400


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """Policies and schema as text, by file name, and their digest.

    ``digest`` is that of :func:`bundle_bytes`: the same texts under the same names, the same digest.
    """

    files: Mapping[str, str]
    digest: str

    @property
    def schema(self) -> str:
        """Text of the schema."""
        return self.files[SCHEMA_FILE]

    @property
    def policy_files(self) -> tuple[str, ...]:
        """Names of the ``.cedar`` files, sorted."""
        return tuple(sorted(name for name in self.files if name != SCHEMA_FILE))


@dataclass(frozen=True, kw_only=True)
class PolicyInfo:
    """A policy of a bundle: its ``@id``, its file, ``permit`` or ``forbid``, and its ``@next``, if any."""

    id: str
    file: str
    effect: str
    next: str | None = None


@dataclass(frozen=True, kw_only=True)
class CompiledBundle:
    """A valid bundle in Cedar's parsed form; immutable, may be shared between threads."""

    bundle: Bundle
    policies: cedarpy.PolicySet
    schema: cedarpy.Schema
    catalogue: Mapping[str, PolicyInfo]
    """Every policy by its ``@id``."""


def build_bundle(files: Mapping[str, bytes]) -> Bundle:
    """A bundle of these files: ``schema.cedarschema`` and one or more ``NAME.cedar``.

    Cedar does not see the text here; its size and shape are within the limits afterwards.

    Raises:
        InvalidRequest: The schema is missing, a name is not of that form, or a text is not UTF-8,
            holds invisible characters, or is nested too deep.
        TooLarge: Too many files, too much text, too many policies.
    """
    if len(files) > limits.MAX_POLICY_FILES:
        raise TooLarge(f"a policy bundle holds more than {limits.MAX_POLICY_FILES} files")
    for name in files:
        if name != SCHEMA_FILE and not _FILE.fullmatch(name):
            raise InvalidRequest(f"policy file {name[:80]!a} is not named NAME.cedar or {SCHEMA_FILE}")
    if SCHEMA_FILE not in files:
        raise InvalidRequest(f"a policy bundle needs a {SCHEMA_FILE}")
    if sum(map(len, files.values())) > limits.MAX_POLICY_TEXT:
        raise TooLarge(f"a policy bundle holds more than {limits.MAX_POLICY_TEXT} bytes of text")
    texts = {name: scan.parse_text(files[name], name) for name in sorted(files)}
    for name, text in texts.items():
        (scan.check_schema if name == SCHEMA_FILE else scan.check_policies)(text, name)
    return Bundle(files=MappingProxyType(texts), digest=canonical.sha256_digest(_encode(texts)))


def bundle_bytes(bundle: Bundle) -> bytes:
    """Canonical JSON ``{"schema": "broker/policy-bundle/v1", "files": {name: text}}``.

    Source: RFC 8785.
    """
    return _encode(bundle.files)


def _encode(files: Mapping[str, str]) -> bytes:
    return canonical.canonical_bytes({"schema": SCHEMA, "files": dict(files)})


def parse_bundle(data: bytes) -> Bundle:
    """The bundle that :func:`bundle_bytes` wrote.

    Raises:
        MalformedRequest: Not canonical JSON of that shape.
        InvalidRequest: See :func:`build_bundle`.
        TooLarge: See :func:`build_bundle`.
    """
    # Escapes at most double a text that has no control characters.
    if len(data) > 2 * limits.MAX_POLICY_TEXT + limits.MAX_POLICY_FILES * limits.KIB:
        raise TooLarge("a policy bundle is too large")
    value = canonical.parse_canonical(data)
    files = value.get("files")
    if set(value) != {"schema", "files"} or value["schema"] != SCHEMA or not isinstance(files, dict):
        raise MalformedRequest(f"the bytes are not a {SCHEMA}")
    if not all(isinstance(text, str) for text in files.values()):
        raise MalformedRequest(f"the bytes are not a {SCHEMA}")
    return build_bundle({name: text.encode("utf-8") for name, text in files.items()})


def compile_bundle(bundle: Bundle) -> CompiledBundle:
    """The bundle in Cedar's parsed form, checked.

    1. Every file parses on its own; there is a policy at all, and no template.
    2. Every policy has an ``@id`` of its own, of the grammar of names.
    3. Every policy fits the schema (Cedar's strict validation).
    4. No policy looks into an entity that it names itself, and no forbid asks whether an attribute is
       there: such answers depend on more than the slice (I13).

    Raises:
        InvalidRequest: One of these does not hold; ``why`` says which and where.
    """
    catalogue: dict[str, PolicyInfo] = {}
    for name in bundle.policy_files:
        for body in _parse_file(bundle.files[name], name):
            info = _describe(body, name)
            if info.id in catalogue:
                raise _refuse(info.file, f"another policy has the @id {info.id} too")
            _check_closed_world(body, info)
            catalogue[info.id] = info
    if not catalogue:
        raise InvalidRequest(
            "a policy bundle without a policy permits nothing", why="it would lock everyone out"
        )
    if len(catalogue) > limits.MAX_POLICIES:
        raise TooLarge(f"a policy bundle holds more than {limits.MAX_POLICIES} policies")
    schema, policies = _parse_whole(bundle)
    return CompiledBundle(
        bundle=bundle, policies=policies, schema=schema, catalogue=MappingProxyType(catalogue)
    )


def _parse_file(text: str, name: str) -> list[Json]:
    try:
        parsed = json.loads(cedarpy.policies_to_json_str(text))
    except (ValueError, RecursionError) as exc:
        raise _refuse(name, str(exc)) from exc
    if parsed["templates"]:
        raise _refuse(name, "a template (?principal, ?resource) decides nothing")
    return list(parsed["staticPolicies"].values())


def _describe(body: Json, file: str) -> PolicyInfo:
    annotations = body.get("annotations") or {}
    id = annotations.get("id")
    if not id:
        raise _refuse(file, "a policy has no @id")
    try:
        names.parse_part(id, "@id")
    except InvalidRequest as exc:
        raise _refuse(file, f"{exc}: {exc.why}") from exc
    advice = annotations.get("next")
    if advice is not None and (not advice.isprintable() or not 0 < len(advice) <= _MAX_ADVICE):
        raise _refuse(file, f"@next of {id} is not one line of at most {_MAX_ADVICE} characters")
    return PolicyInfo(id=id, file=file, effect=body["effect"], next=advice)


def _parse_whole(bundle: Bundle) -> tuple[cedarpy.Schema, cedarpy.PolicySet]:
    text = "\n".join(bundle.files[name] for name in bundle.policy_files)
    try:
        schema = cedarpy.Schema.from_str(bundle.schema, release_gil=True)
        policies = cedarpy.PolicySet.from_str(text, release_gil=True)
        result = cedarpy.validate_policies(text, schema, release_gil=True)
    except ValueError as exc:
        raise _refuse(SCHEMA_FILE, str(exc)) from exc
    if not result.validation_passed:
        first = result.errors[0]
        id = result.id_annotations_by_policy_id.get(first.policy_id, first.policy_id)
        raise _refuse(id, first.error)
    return schema, policies


# -- what the slice cannot answer -------------------------------------------------------------------------

_LOOKS_INTO: Final = {
    "in": "left",
    ".": "left",
    "has": "left",
    "hasTag": "left",
    "getTag": "left",
}
"""Operators that read an entity, and which operand it is."""


def _check_closed_world(body: Json, info: PolicyInfo) -> None:
    for operator, operands in _expressions([clause["body"] for clause in body["conditions"]]):
        if info.effect == "forbid" and operator == "has":
            raise _refuse(info.file, f"{info.id}: a forbid must rest on attributes that are always there")
        side = _LOOKS_INTO.get(operator)
        # `is ... in` reads its left operand as well.
        if operator == "is" and "in" in operands:
            side = "left"
        if side and _names_entity(operands[side]):
            raise _refuse(info.file, f"{info.id}: looks into an entity that the policy names itself")


def _expressions(start: list[Any]) -> Iterator[tuple[str, Any]]:
    """Every (operator, operands) below ``start``, without recursion."""
    waiting = list(start)
    while waiting:
        expression = waiting.pop()
        for operator, operands in expression.items():
            yield operator, operands
            if operator not in ("Value", "Var", "Slot", "Unknown"):
                waiting.extend(_operands(operands))


def _operands(operands: Any) -> list[Json]:
    # Members of a record are expressions under names that the author chose; those of an operator
    # are expressions, or names and patterns, which are not objects of one member each.
    members = operands if isinstance(operands, list) else operands.values()
    return [member for member in members if isinstance(member, dict)]


def _names_entity(value: Any) -> bool:
    waiting = [value]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            if "__entity" in item:
                return True
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
    return False


def _refuse(where: str, why: str) -> InvalidRequest:
    shown = "".join(ch if ch.isprintable() else "?" for ch in " ".join(why.split())[:_MAX_SHOWN])
    return InvalidRequest(f"the policies are not valid: {where}", why=shown)
