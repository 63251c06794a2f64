"""Decisions made again: from the inputs that were kept as evidence, by the same bundle or by another."""

from __future__ import annotations

from typing import Any

from broker.canonical import Json
from broker.errors import InvalidRequest
from broker.policy.entities import Slice, reachable_groups
from broker.policy.request import Uid


def parse_slice(inputs: Any) -> Slice:
    """The slice whose :meth:`~broker.policy.entities.Slice.as_json` gave these inputs.

    The groups that the principal is to be found in are those that it is found in: what the broker looked up
    is not in the inputs. All other gaps are found as in the first decision.

    Raises:
        InvalidRequest: They are not the inputs of a decision.
    """
    try:
        principal, resource = _uid(inputs["principal"]), _uid(inputs["resource"])
        entities = {_uid(entity["uid"]): entity for entity in inputs["entities"]}
        action, context = inputs["action"]["id"], inputs["context"]
        if len(entities) != len(inputs["entities"]) or not isinstance(context, dict):
            raise InvalidRequest("an entity is there twice, or the context is no object")
        return Slice(
            principal=principal,
            action=str(action),
            resource=resource,
            context=context,
            entities=entities,
            members=reachable_groups(principal, entities),
        )
    except (KeyError, TypeError, AttributeError) as exc:
        raise InvalidRequest("evidence holds no inputs of a decision", why=type(exc).__name__) from exc


def _uid(value: Json) -> Uid:
    return value["type"], value["id"]
