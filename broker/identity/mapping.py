"""Mappings: which principal, groups, roles and attributes a foreign identity has here.

An issuer has one mapping, a list of rules. The first rule whose every ``match`` fits decides; when none
fits, or the one that does cannot be filled in, the identity is refused: nothing is guessed. What a rule
can say is bounded: the principal always begins with ``workload:<issuer's name>/``, so issuers cannot speak
for each other or for people, and the roles are ``workload`` and ``publisher`` only.

What a rule says of claims is in :mod:`broker.identity.patterns`.
"""

from __future__ import annotations

import re
from collections import abc
from dataclasses import dataclass, field
from typing import Final

from broker import limits, names
from broker.canonical import Json, canonical_bytes, parse_json_object, sha256_digest
from broker.errors import BrokerError, InvalidRequest
from broker.identity.issuers import Subject, parse_issuer_name, refuse_subject
from broker.identity.patterns import (
    Pattern,
    Template,
    check_claim_name,
    find_claim,
    invalid_mapping,
    parse_pattern,
    parse_template,
)
from broker.model import ISSUER_KINDS

SCHEMA: Final = "broker/issuer-map/v1"
DEFAULT_ROLES: Final = ("workload",)
ROLES: Final = ("workload", "publisher")
"""What a mapping may give. A person's roles are given to people."""
RESERVED_ATTRIBUTE: Final = "issuer"
"""The attribute that policy finds the issuer's name in."""

_REQUIRED: Final[abc.Mapping[str, tuple[str, ...]]] = {
    "kubernetes": ("namespace", "service_account_uid"),
    "github": ("repository_id", "repository_owner_id"),
}
"""Kind -> claims that every rule binds to exact values: names are used again, ids are not."""
_SAY_NOTHING: Final = frozenset({"iss", "aud", "exp", "iat", "nbf", "jti", "trust_domain"})
"""Claims that every token of an issuer has, or that are new in each: no rule may rest on them alone."""
_RULE_MEMBERS: Final = frozenset(
    {"name", "match", "principal", "groups", "roles", "attributes", "pull_requests"}
)
_RULE_NAME: Final = re.compile(r"[a-z0-9][a-z0-9_.-]{0,62}")
_ATTRIBUTE_NAME: Final = re.compile(r"[a-z][a-z0-9_]{0,62}")
_ATTRIBUTE_VALUE: Final = re.compile(r"[ -~]+")
_DECIMAL: Final = re.compile(r"[1-9][0-9]{0,19}")


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One rule: when every claim of ``match`` fits one of its patterns, the rest is what is given."""

    name: str
    match: tuple[tuple[str, tuple[Pattern, ...]], ...]
    principal: Template
    groups: tuple[str, ...] = ()
    roles: tuple[str, ...] = DEFAULT_ROLES
    attributes: tuple[tuple[str, Template], ...] = ()
    pull_requests: bool = False

    def matches(self, subject: Subject) -> bool:
        """Whether the rule is for this identity."""
        if subject.pull_request and not self.pull_requests:
            return False
        return all(_fits(find_claim(subject.claims, name), patterns) for name, patterns in self.match)


def _fits(value: str | None, patterns: tuple[Pattern, ...]) -> bool:
    return value is not None and any(pattern.matches(value) for pattern in patterns)


@dataclass(frozen=True, kw_only=True)
class Mapping:
    """The rules of one issuer, in their order."""

    kind: str
    rules: tuple[Rule, ...]


@dataclass(frozen=True, kw_only=True)
class Mapped:
    """What an identity is here.

    Attributes:
        principal: ``workload:<issuer's name>/...``.
        groups: Groups it is in besides those that are stored with the principal.
        roles: Of ``ROLES``.
        attributes: For policy.
        rule: The rule that said so.
    """

    principal: str
    groups: tuple[str, ...]
    roles: tuple[str, ...]
    attributes: dict[str, str] = field(default_factory=dict)
    rule: str


def parse_mapping(value: object, *, kind: str) -> Mapping:
    """A mapping: the object, or its JSON text.

    Args:
        value: ``{"schema": "broker/issuer-map/v1", "rules": [...]}``.
        kind: The issuer's kind, one of ``ISSUER_KINDS``: what every rule must bind depends on it.

    Raises:
        InvalidRequest: It breaks a rule of the format; ``why`` says which and where.
        MalformedRequest: It is text, and not JSON.
    """
    if kind not in ISSUER_KINDS:
        raise invalid_mapping("there is no issuer of that kind")
    if isinstance(value, str | bytes):
        value = parse_json_object(value.encode("utf-8", "replace") if isinstance(value, str) else value)
    if not isinstance(value, dict) or set(value) != {"schema", "rules"} or value["schema"] != SCHEMA:
        raise invalid_mapping(f"a mapping has exactly the members rules and schema, which is {SCHEMA}")
    if len(canonical_bytes(value)) > limits.MAX_MAPPING:
        raise invalid_mapping(f"a mapping is larger than {limits.MAX_MAPPING} bytes")
    listed = value["rules"]
    if not isinstance(listed, list) or not 0 < len(listed) <= limits.MAX_MAP_RULES:
        raise invalid_mapping(f"a mapping has 1 to {limits.MAX_MAP_RULES} rules")
    rules = tuple(_parse_rule(member, kind) for member in listed)
    if len({rule.name for rule in rules}) != len(rules):
        raise invalid_mapping("two rules have the same name")
    return Mapping(kind=kind, rules=rules)


def mapping_bytes(mapping: Mapping) -> bytes:
    """The mapping's one text, as canonical JSON: :func:`parse_mapping` gives it again."""
    return canonical_bytes({"schema": SCHEMA, "rules": [_rule_json(rule) for rule in mapping.rules]})


def mapping_digest(mapping: Mapping) -> str:
    """``sha256:<hex>`` of :func:`mapping_bytes`."""
    return sha256_digest(mapping_bytes(mapping))


def apply_mapping(mapping: Mapping, subject: Subject, *, issuer_name: str) -> Mapped:
    """What the identity is here, by the first rule that is for it.

    Raises:
        InvalidRequest: No rule is for it, or the one that is cannot be filled in. A later rule is not
            tried then: it was not meant for this identity. ``what`` is ``INVALID_SUBJECT``.
    """
    parse_issuer_name(issuer_name)
    for rule in mapping.rules:
        if rule.matches(subject):
            return Mapped(
                principal=_fill_principal(rule.principal, subject.claims, issuer_name),
                groups=rule.groups,
                roles=rule.roles,
                attributes={name: _fill_attribute(text, subject.claims) for name, text in rule.attributes},
                rule=rule.name,
            )
    raise refuse_subject("no rule of the issuer's mapping is for this identity")


def _fill_principal(template: Template, claims: Json, issuer_name: str) -> str:
    tail = template.fill(claims)
    full = f"workload:{issuer_name}/{tail}"
    try:
        names.parse_principal(full)
    except BrokerError as exc:
        raise refuse_subject("what the rule makes of the claims is not the name of a principal") from exc
    # The grammar lets these through; a URL that names the principal would lose them.
    if tail.endswith("/") or "." in full.split("/"):
        raise refuse_subject("what the rule makes of the claims is not the name of a principal")
    return full


def _fill_attribute(template: Template, claims: Json) -> str:
    value = template.fill(claims)
    if len(value) > limits.MAX_ATTRIBUTE or not _ATTRIBUTE_VALUE.fullmatch(value):
        raise refuse_subject(f"an attribute is not printable ASCII of 1 to {limits.MAX_ATTRIBUTE} characters")
    return value


def _parse_rule(value: object, kind: str) -> Rule:
    if not isinstance(value, dict) or not {"name", "match", "principal"} <= set(value) <= _RULE_MEMBERS:
        raise invalid_mapping(f"a rule has name, match and principal, and else only {', '.join(_OPTIONAL)}")
    name = value["name"]
    if not isinstance(name, str) or not _RULE_NAME.fullmatch(name):
        raise invalid_mapping("the name of a rule is [a-z0-9][a-z0-9_.-]{0,62}")
    try:
        rule = Rule(
            name=name,
            match=_parse_match(value["match"], kind),
            principal=_parse_principal(value["principal"]),
            groups=_parse_groups(value.get("groups", [])),
            roles=_parse_roles(value.get("roles", list(DEFAULT_ROLES))),
            attributes=_parse_attributes(value.get("attributes", {})),
            pull_requests=_parse_pull_requests(value.get("pull_requests", False), kind),
        )
    except InvalidRequest as exc:
        raise InvalidRequest(exc.what, why=f"rule {name}: {exc.why}") from exc
    return rule


_OPTIONAL: Final = sorted(_RULE_MEMBERS - {"name", "match", "principal"})


def _parse_match(value: object, kind: str) -> tuple[tuple[str, tuple[Pattern, ...]], ...]:
    # An empty match would be everybody (I03).
    if not isinstance(value, dict) or not 0 < len(value) <= limits.MAX_MAP_CLAIMS:
        raise invalid_mapping(f"match names 1 to {limits.MAX_MAP_CLAIMS} claims")
    found = {check_claim_name(name): _parse_values(wanted) for name, wanted in sorted(value.items())}
    for name in _REQUIRED.get(kind, ()):
        if name not in found or not all(pattern.exact for pattern in found[name]):
            raise invalid_mapping(f"match binds {name} to exact values: every rule of a {kind} issuer does")
    if kind == "github":
        for name in _REQUIRED[kind]:
            if not all(_DECIMAL.fullmatch(pattern.text) for pattern in found[name]):
                raise invalid_mapping(f"{name} is a decimal number")
    if not any(_binds(name, patterns) for name, patterns in found.items()):
        raise invalid_mapping("match says nothing that some other token of the issuer would not fit")
    return tuple(found.items())


def _binds(name: str, patterns: tuple[Pattern, ...]) -> bool:
    return name.removeprefix("/").split("/")[0] not in _SAY_NOTHING and all(p.binds for p in patterns)


def _parse_values(value: object) -> tuple[Pattern, ...]:
    listed = value if isinstance(value, list) else [value]
    if not 0 < len(listed) <= limits.MAX_MAP_VALUES:
        raise invalid_mapping(f"a claim is matched with 1 to {limits.MAX_MAP_VALUES} values")
    return tuple(parse_pattern(text) for text in listed)


def _parse_principal(value: object) -> Template:
    template = parse_template(value)
    # With any filling in place of the claims it must be a name; what the claims are is seen later.
    sample = template.sample
    if sample.startswith("/") or sample.endswith("/"):
        raise invalid_mapping("the principal neither begins nor ends with '/'")
    try:
        names.parse_principal(f"workload:{sample}")
    except BrokerError as exc:
        raise invalid_mapping("the principal is letters, digits and ._@+/- around its {claims}") from exc
    return template


def _parse_groups(value: object) -> tuple[str, ...]:
    groups = _parse_list("groups", value, limits.MAX_GROUPS)
    for group in groups:
        try:
            names.parse_group(group)
        except BrokerError as exc:
            raise invalid_mapping("one of groups is not the name of a group") from exc
    return groups


def _parse_roles(value: object) -> tuple[str, ...]:
    roles = _parse_list("roles", value, len(ROLES))
    if not roles or not set(roles) <= set(ROLES):
        raise invalid_mapping(f"roles are of {' and '.join(ROLES)}, at least one")
    return roles


def _parse_list(name: str, value: object, most: int) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(member, str) for member in value):
        raise invalid_mapping(f"{name} is not a list of texts")
    if len(value) > most or len(set(value)) != len(value):
        raise invalid_mapping(f"{name} has more than {most} members, or one of them twice")
    return tuple(value)


def _parse_attributes(value: object) -> tuple[tuple[str, Template], ...]:
    if not isinstance(value, dict) or len(value) > limits.MAX_ATTRIBUTES:
        raise invalid_mapping(f"attributes is not an object of at most {limits.MAX_ATTRIBUTES} members")
    for name in value:
        if not isinstance(name, str) or not _ATTRIBUTE_NAME.fullmatch(name) or name == RESERVED_ATTRIBUTE:
            raise invalid_mapping(
                f"the name of an attribute is [a-z][a-z0-9_]{{0,62}}, and not {RESERVED_ATTRIBUTE}"
            )
    return tuple((name, parse_template(text)) for name, text in sorted(value.items()))


def _parse_pull_requests(value: object, kind: str) -> bool:
    if not isinstance(value, bool) or (value and kind != "github"):
        raise invalid_mapping("pull_requests is true or false, and true only for a github issuer")
    return value


def _rule_json(rule: Rule) -> Json:
    """What is not the default, each value in its shortest form."""
    texts = {name: [pattern.text for pattern in patterns] for name, patterns in rule.match}
    body: Json = {
        "name": rule.name,
        "match": {name: listed[0] if len(listed) == 1 else listed for name, listed in texts.items()},
        "principal": rule.principal.text,
        "roles": list(rule.roles),
    }
    if rule.groups:
        body["groups"] = list(rule.groups)
    if rule.attributes:
        body["attributes"] = {name: template.text for name, template in rule.attributes}
    if rule.pull_requests:
        body["pull_requests"] = True
    return body
