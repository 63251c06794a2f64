"""Signed notes and tree heads: one strict form, and no way around the signature."""

from __future__ import annotations

import pytest

from broker import limits
from broker.errors import ConfigurationError, IntegrityFailure
from broker.ledger.merkle import EMPTY_ROOT
from broker.ledger.note import (
    TreeHead,
    Verifier,
    encode_base64,
    head_text,
    open_head,
    open_note,
    parse_head,
    parse_vkey,
    sign_head,
    sign_note,
    vkey,
)
from tests.unit.ledger.samples import KEY, ORIGIN, OTHER_KEY, OTHER_VERIFIER, VERIFIER

TEXT = "first line\n\nthird line\n"
HEAD = TreeHead(origin=ORIGIN, size=7, root=bytes(range(32)))


def note_of(text: str = TEXT) -> str:
    return sign_note(text, VERIFIER, KEY.sign)


def unknown_signature(at: int = 0) -> str:
    return f"— witness{at}.example {encode_base64(bytes([at]) * 76)}\n"


# -- keys ---------------------------------------------------------------------------------------------


def test_vkey_round_trip():
    text = vkey(ORIGIN, KEY.public_key())
    assert text == VERIFIER.vkey == vkey(ORIGIN, VERIFIER.public)
    assert parse_vkey(text) == VERIFIER


def test_vkey_with_any_change_is_refused():
    name, key_id, key = VERIFIER.vkey.split("+", 2)
    broken = [
        "",
        name,
        f"{name}+{key_id}",
        f"other+{key_id}+{key}",
        f"{name}+00000000+{key}",
        f"{name}+{key_id.upper()}x+{key}",
        f"{name}+{key_id}+{key[:-4]}",
        f"{name}+{key_id}+{key}=",
        f"{name}+{key_id}+{encode_base64(bytes([2]) + VERIFIER.public)}",
        f"{name}+{key_id}+{encode_base64(bytes([4]) + VERIFIER.public)}",
        f"{name}+{key_id}+{encode_base64(bytes([1]) + OTHER_VERIFIER.public)}",
        f" {name}+{key_id}+{key}",
        f"{name}+{key_id}+{key}\n",
    ]
    for text in broken:
        with pytest.raises(ConfigurationError):
            parse_vkey(text)


@pytest.mark.parametrize("origin", ["", "a b", "a+b", "a\nb", "a\x00b", "a\u00a0b", "a\u2028b", "\ud800"])
def test_an_origin_that_breaks_the_note_format_is_refused(origin):
    with pytest.raises(ConfigurationError):
        Verifier(name=origin, public=bytes(32))


def test_an_origin_may_be_as_long_as_the_limit_and_no_longer():
    Verifier(name="o" * limits.MAX_ORIGIN, public=bytes(32))
    with pytest.raises(ConfigurationError):
        Verifier(name="o" * (limits.MAX_ORIGIN + 1), public=bytes(32))


# -- notes --------------------------------------------------------------------------------------------


def test_a_note_opens_with_its_key_as_text_or_parsed():
    assert open_note(note_of(), [VERIFIER]) == TEXT
    assert open_note(note_of(), [VERIFIER.vkey]) == TEXT
    assert open_note(note_of(), [OTHER_VERIFIER, VERIFIER]) == TEXT


def test_signing_is_deterministic():
    assert note_of() == note_of()


def test_a_note_without_a_known_signature_is_refused():
    for keys in ([], [OTHER_VERIFIER], [Verifier(name="other", public=VERIFIER.public)]):
        with pytest.raises(IntegrityFailure):
            open_note(note_of(), keys)


def test_signatures_of_unknown_keys_are_ignored_wherever_they_stand():
    text, own = note_of().split("\n\n— ")
    for note in (
        note_of() + unknown_signature(1),
        f"{text}\n\n{unknown_signature(1)}{unknown_signature(2)}— {own}",
    ):
        assert open_note(note, [VERIFIER]) == TEXT


def test_a_bad_signature_of_a_known_key_refuses_the_note_even_beside_a_good_one():
    forged = sign_note("other\n", VERIFIER, KEY.sign).rpartition("\n\n")[2]
    with pytest.raises(IntegrityFailure):
        open_note(note_of() + forged, [VERIFIER])
    short = f"— {ORIGIN} {encode_base64(VERIFIER.key_id + bytes(63))}\n"
    with pytest.raises(IntegrityFailure):
        open_note(note_of() + short, [VERIFIER])


def test_every_changed_character_refuses_the_note():
    note = note_of()
    for at in range(len(note)):
        changed = note[:at] + ("x" if note[at] != "x" else "y") + note[at + 1 :]
        with pytest.raises(IntegrityFailure):
            open_note(changed, [VERIFIER])


def test_notes_of_another_form_are_refused():
    note = note_of()
    line = note.rpartition("\n\n")[2]
    broken = [
        "",
        "\n\n",
        note[:-1],
        note + "\n",
        note + "\n\n",
        note + "trailing\n",
        note.replace("\n\n—", "\n—"),
        note.replace("—", "-"),
        note.replace("— ", "—  "),
        note.replace(line, line[:-1] + " \n"),
        note.replace(line, line[:-2] + "\n"),
        note.replace("\n", "\r\n"),
        note.replace("first", "fi\trst"),
        note.replace("first", "fi\x00rst"),
        note.replace("first", "fi\ud800rst"),
        note.encode(),
        None,
    ]
    for text in broken:
        with pytest.raises(IntegrityFailure):
            open_note(text, [VERIFIER])  # type: ignore[arg-type]


def test_a_text_that_would_read_back_differently_cannot_be_signed():
    for text in ("no newline at the end", "", "a\n\n— x AAAA", "\ud800\n", "tab\t\n"):
        with pytest.raises(IntegrityFailure):
            sign_note(text, VERIFIER, KEY.sign)


def test_a_signer_with_another_key_is_found_before_its_note_gets_out():
    with pytest.raises(IntegrityFailure):
        sign_note(TEXT, VERIFIER, OTHER_KEY.sign)


def test_a_note_may_have_as_many_signatures_as_the_limit_and_no_more():
    extra = "".join(unknown_signature(at) for at in range(limits.MAX_NOTE_SIGNATURES - 1))
    assert open_note(note_of() + extra, [VERIFIER]) == TEXT
    with pytest.raises(IntegrityFailure):
        open_note(note_of() + extra + unknown_signature(200), [VERIFIER])


def test_a_note_may_be_as_large_as_the_limit_and_no_larger():
    room = limits.MAX_NOTE - len(note_of("\n").encode())
    largest = note_of("x" * room + "\n")
    assert len(largest.encode()) == limits.MAX_NOTE
    assert open_note(largest, [VERIFIER]) == "x" * room + "\n"
    with pytest.raises(IntegrityFailure):
        note_of("x" * (room + 1) + "\n")


# -- tree heads -----------------------------------------------------------------------------------------


def test_head_round_trip():
    for size in (0, 7, limits.MAX_TREE_SIZE):
        head = TreeHead(origin=ORIGIN, size=size, root=EMPTY_ROOT)
        assert parse_head(head_text(head)) == head
        assert open_head(sign_head(head, VERIFIER, KEY.sign), VERIFIER.vkey) == head


@pytest.mark.parametrize("size", [-1, limits.MAX_TREE_SIZE + 1])
def test_a_head_of_impossible_size_is_neither_written_nor_read(size):
    head = TreeHead(origin=ORIGIN, size=size, root=EMPTY_ROOT)
    with pytest.raises(IntegrityFailure):
        head_text(head)
    with pytest.raises(IntegrityFailure):
        parse_head(f"{ORIGIN}\n{size}\n{encode_base64(EMPTY_ROOT)}\n")


def test_heads_of_another_form_are_refused():
    text = head_text(HEAD)
    root = text.split("\n")[2]
    broken = [
        "",
        text[:-1],
        text + "\n",
        text + "extension\n",
        text + "extension",
        "\n" + text,
        text.replace("\n7\n", "\n07\n"),
        text.replace("\n7\n", "\n+7\n"),
        text.replace("\n7\n", "\n7 \n"),
        text.replace("\n7\n", "\n٧\n"),
        text.replace("\n7\n", "\n\n"),
        text.replace(ORIGIN, "two words"),
        text.replace(ORIGIN, ""),
        text.replace(root, root[:-1]),
        text.replace(root, root.replace("=", "")),
        text.replace(root, encode_base64(bytes(31))),
        text.replace(root, encode_base64(bytes(33))),
    ]
    for head in broken:
        with pytest.raises(IntegrityFailure):
            parse_head(head)


def test_a_head_is_signed_by_its_own_log_only():
    # A genuine note of another log, or of a key of another name, says nothing about this log.
    other = Verifier(name="other.example", public=OTHER_VERIFIER.public)
    cross = sign_note(head_text(HEAD), other, OTHER_KEY.sign)
    with pytest.raises(IntegrityFailure):
        open_head(cross, [other, VERIFIER])
    with pytest.raises(IntegrityFailure):
        sign_head(HEAD, other, OTHER_KEY.sign)
    own = sign_head(TreeHead(origin="other.example", size=1, root=bytes(32)), other, OTHER_KEY.sign)
    assert open_head(own, [VERIFIER, other]).origin == "other.example"
    with pytest.raises(IntegrityFailure):
        open_head(own, VERIFIER)


def test_a_head_opens_with_an_older_key_of_the_same_log():
    assert open_head(sign_head(HEAD, OTHER_VERIFIER, OTHER_KEY.sign), [VERIFIER, OTHER_VERIFIER]) == HEAD


def test_a_signed_text_that_is_no_head_is_refused():
    with pytest.raises(IntegrityFailure):
        open_head(sign_note(f"{ORIGIN}\nhello\n", VERIFIER, KEY.sign), VERIFIER)
