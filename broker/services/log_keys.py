"""The log's own keys: which it names, the change from one to the next, and what shows it to others.

While a key is changed, the one before and the one after both sign every tree head, so that whoever
pinned either goes on. The entry ``key-rotation`` stands between them; the head of the tree that ends
with it is kept, signed by the key before, for as long as the log is (:mod:`broker.ledger.lineage`).
"""

from __future__ import annotations

from itertools import pairwise

from broker.canonical import Json
from broker.drafts import Draft
from broker.errors import ConfigurationError, IntegrityFailure, LedgerUnavailable
from broker.ledger import lineage, merkle, note, receipt
from broker.ledger.note import Verifier
from broker.ports import View
from broker.services.cosigned import head_note
from broker.services.house import House
from broker.services.log_names import named_keys
from broker.services.record import decide_and_append, new_entry, sign_head


def check_keys(house: House) -> None:
    """The settings have the keys that the log names.

    Raises:
        ConfigurationError: The signing key is not one of them, or the newest of them does not sign:
            clients that know it would refuse every head.
    """
    with house.ledger.view() as view:
        named = [each.vkey for each in named_keys(view)]
    if house.log.vkey not in named:
        raise ConfigurationError(
            "the log does not name the key that the settings sign it with",
            why=f"it goes on under {named[-1]}, and keys.log is {house.log.vkey}",
            next="put the key that it names into keys.log; to change it see docs/operations/log-keys.md",
        )
    if named[-1] not in [each.vkey for each in house.log.every]:
        raise ConfigurationError(
            "the log goes on under a key that the settings do not have",
            why=f"it names {named[-1]}",
            next="put that key into keys.log, or into keys.log_also",
        )


def rotate(house: House) -> Json:
    """Record that the log goes on under the key beside its own; running it again is fine.

    Crash here, before the head is kept: the entry names the new key, and nobody can follow it yet. The
    next run keeps the head.

    Returns:
        ``index`` of the entry, ``vkey`` of the new key and ``previous``, that of the key before.

    Raises:
        ConfigurationError: The settings do not have exactly the key before and one key after it.
        LedgerUnavailable: It is not known to be recorded.
    """
    if len(house.log.also) != 1:
        raise _unready(house)
    former, new = house.verifiers()
    with house.ledger.view() as view:
        named = named_keys(view)
    if len(named) > 1 and {named[-2].vkey, named[-1].vkey} == {former.vkey, new.vkey}:
        # Recorded already. Both keys are at hand, so the head can be kept once more.
        index, former, new = named[-1].index, *(note.parse_vkey(each.vkey) for each in named[-2:])
    else:
        index = _record(house, former, new)
    _keep_statement(house, index)
    house.keep_head(force=True)
    return {"index": index, "vkey": new.vkey, "previous": former.vkey}


def _record(house: House, former: Verifier, new: Verifier) -> int:
    def decide(view: View) -> Draft:
        vkeys = [each.vkey for each in named_keys(view)]
        if vkeys[-1] != former.vkey:
            raise _unready(house)
        if new.vkey in vkeys:
            raise ConfigurationError(
                "the key in keys.log_also is one that the log had before",
                why=f"it goes on under {former.vkey}",
                next="to change it, make another: broker admin keys create-log FILE",
            )
        members: Json = {"kid": new.key_id.hex(), "previous_kid": former.key_id.hex(), "vkey": new.vkey}
        entry = new_entry(house, time=view.now, type=lineage.TYPE, use=lineage.USE, **members)
        # The epoch: of two changes at once the second one sees the first.
        return Draft(entries=(entry,), bumps_epoch=True)

    index = decide_and_append(house, decide).index
    if index is None:
        raise IntegrityFailure("the change of the log's key was recorded nowhere")
    return index


def _unready(house: House) -> ConfigurationError:
    with house.ledger.view() as view:
        named = named_keys(view)[-1].vkey
    return ConfigurationError(
        "a change of the log's key needs the key before and the key after it",
        why=f"the log goes on under {named}",
        next="keep that key in keys.log, and put the new one, and no other, into keys.log_also",
    )


def _keep_statement(house: House, index: int) -> None:
    with house.ledger.view() as view:
        text = head_note(house, view, index + 1)
    house.ledger.keep_head(index + 1, text)


def show_keys(house: House) -> Json:
    """The log's keys, and the statements that lead from each to the next.

    Returns:
        ``origin``; ``keys``: a list of ``vkey``, ``index`` (the entry that names it) and, where one came
        before, ``statement``: the receipt of that entry under a head that the key before signed; and
        ``head``: the newest tree head, signed by every key that signs now.

    Raises:
        IntegrityFailure: What is stored does not show it.
        LedgerUnavailable: A statement is not kept: it was recorded a moment ago, or it is lost.
    """
    with house.ledger.view() as view:
        named = named_keys(view)
        keys: list[Json] = [{"vkey": named[0].vkey, "index": named[0].index}]
        for former, each in pairwise(named):
            text = _statement(view, each.index)
            if lineage.follow(former.vkey, [text]).key.vkey != each.vkey:
                raise IntegrityFailure("a change of the log's key does not lead to the key that it names")
            keys.append({"vkey": each.vkey, "index": each.index, "statement": text})
        return {"origin": house.log.origin, "keys": keys, "head": sign_head(house, view.tail())}


def _statement(view: View, index: int) -> str:
    text = view.head(index + 1)
    if text is None:
        # Also for a moment after the entry: whoever asks comes again.
        raise LedgerUnavailable(
            "the tree head that names the log's new key is not kept",
            next="on the server, with both keys: broker admin keys rotate-log",
        )
    proof = merkle.inclusion_proof(index, index + 1, view.hashes)
    return receipt.build_receipt(view.entry(index), index, proof, text)
