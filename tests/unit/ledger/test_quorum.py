"""C2SP tlog-policy files: what they may say, and which notes they let pass."""

from __future__ import annotations

import itertools

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from broker.errors import ConfigurationError, IntegrityFailure
from broker.ledger import cosign, note, quorum

ORIGIN = "example.com/log"
LOG = Ed25519PrivateKey.from_private_bytes(b"L" * 32)
VKEY = note.vkey(ORIGIN, LOG.public_key())
HEAD = note.TreeHead(origin=ORIGIN, size=7, root=b"r" * 32)
SIGNED = note.sign_head(HEAD, note.parse_vkey(VKEY), LOG.sign)
NAMES = ("X1", "X2", "X3", "Y1", "Y2", "Y3")
PRIVATE = {name: Ed25519PrivateKey.from_private_bytes(name.encode() * 16) for name in NAMES}
KEYS = {
    name: cosign.CosignerKey(name=f"w.example/{name}", public=key.public_key().public_bytes_raw())
    for name, key in PRIVATE.items()
}

# The example of the specification.
EXAMPLE = f"""
log {VKEY}

# two organisations
witness X1 {KEYS["X1"].vkey}
witness X2 {KEYS["X2"].vkey} https://x2.example/w
witness X3 {KEYS["X3"].vkey}
group X-witnesses 2 X1 X2 X3

\twitness\tY1  {KEYS["Y1"].vkey}\t
witness Y2 {KEYS["Y2"].vkey}
witness Y3 {KEYS["Y3"].vkey}
group Y-witnesses any Y1 Y2 Y3

group X-and-Y all X-witnesses Y-witnesses
quorum X-and-Y
"""


def cosigned(*names: str, signed: str = SIGNED) -> str:
    text = note.head_text(HEAD)
    return cosign.merge(signed, [cosign.cosign(text, KEYS[name], PRIVATE[name].sign, 9) for name in names])


def test_the_example_is_read() -> None:
    policy = quorum.parse_policy(EXAMPLE)
    assert [log.vkey for log in policy.logs] == [VKEY]
    assert [each.name for each in policy.witnesses] == list(NAMES)
    assert [each.url for each in policy.witnesses] == [None, "https://x2.example/w", *[None] * 4]
    assert policy.quorum == "X-and-Y"


def test_every_set_of_witnesses_is_judged_as_the_file_says() -> None:
    policy = quorum.parse_policy(EXAMPLE)
    for count in range(len(NAMES) + 1):
        for names in itertools.combinations(NAMES, count):
            enough = len({"X1", "X2", "X3"} & set(names)) >= 2 and bool({"Y1", "Y2", "Y3"} & set(names))
            if enough:
                assert policy.check(cosigned(*names)) == HEAD
            else:
                with pytest.raises(IntegrityFailure):
                    policy.check(cosigned(*names))


def test_who_is_missing_is_said() -> None:
    with pytest.raises(IntegrityFailure) as refused:
        quorum.parse_policy(EXAMPLE).check(cosigned("X1", "Y1"))
    assert refused.value.why == "no cosignature of X2, X3, Y2, Y3"


def test_without_the_logs_own_signature_a_quorum_is_worth_nothing() -> None:
    other = Ed25519PrivateKey.from_private_bytes(b"M" * 32)
    forged = note.sign_head(HEAD, note.parse_vkey(note.vkey(ORIGIN, other.public_key())), other.sign)
    with pytest.raises(IntegrityFailure):
        quorum.parse_policy(EXAMPLE).check(cosigned(*NAMES, signed=forged))


def test_one_broken_cosignature_refuses_even_a_quorum() -> None:
    text = note.head_text(note.TreeHead(origin=ORIGIN, size=8, root=b"r" * 32))
    line = cosign.cosign(text, KEYS["Y3"], PRIVATE["Y3"].sign, 9)
    with pytest.raises(IntegrityFailure):
        quorum.parse_policy(EXAMPLE).check(cosign.merge(cosigned("X1", "X2", "Y1"), [line]))


def test_a_quorum_may_be_one_witness_or_none() -> None:
    one = quorum.parse_policy(f"log {VKEY}\nwitness a {KEYS['X1'].vkey}\nquorum a\n")
    assert one.check(cosigned("X1")) == HEAD
    with pytest.raises(IntegrityFailure):
        one.check(SIGNED)
    assert quorum.parse_policy(f"log {VKEY}\nquorum none").check(SIGNED) == HEAD


def test_the_same_key_under_another_name_is_not_that_witness() -> None:
    twin = cosign.CosignerKey(name="twin.example", public=KEYS["X1"].public)
    policy = quorum.parse_policy(f"log {VKEY}\nwitness a {KEYS['X1'].vkey}\nquorum a\n")
    line = cosign.cosign(note.head_text(HEAD), twin, PRIVATE["X1"].sign, 9)
    with pytest.raises(IntegrityFailure):
        policy.check(cosign.merge(SIGNED, [line]))


W1, W2 = KEYS["X1"].vkey, KEYS["X2"].vkey


@pytest.mark.parametrize(
    "text",
    [
        "",
        f"log {VKEY}\n",
        "quorum a\n",
        f"quorum a\nwitness a {W1}\n",
        "quorum none\nquorum none\n",
        "quorum none none\n",
        "Quorum none\n",
        f"log {VKEY}\nlog {VKEY}\nquorum none\n",
        f"log {W1}\nquorum none\n",
        "log\nquorum none\n",
        f"log {VKEY} https://a https://b\nquorum none\n",
        f"witness a {VKEY}\nquorum none\n",
        f"witness a {W1}\nwitness a {W2}\nquorum a\n",
        f"witness a {W1}\nwitness b {W1}\nquorum a\n",
        f"witness none {W1}\nquorum none\n",
        f"witness a {W1} u v\nquorum a\n",
        f"witness a {W1}\ngroup g any a b\nquorum g\n",
        f"witness a {W1}\ngroup g any g\nquorum g\n",
        f"witness a {W1}\ngroup g any\nquorum a\n",
        f"witness a {W1}\ngroup g 2 a\nquorum g\n",
        f"witness a {W1}\ngroup g 0 a\nquorum g\n",
        f"witness a {W1}\ngroup g 01 a\nquorum g\n",
        f"witness a {W1}\ngroup g most a\nquorum g\n",
        f"witness a {W1}\ngroup g any a a\nquorum g\n",
        f"witness a {W1}\ngroup g any a\ngroup h any a\nquorum g\n",
        f"witness a {W1}\ngroup a any a\nquorum a\n",
        f"witness a {W1}\ngroup none any a\nquorum a\n",
        "group g any none\nquorum g\n",
        "quorum none\r\n",
        "quorum none\x00\n",
        "quorum none\x7f\n",
        "# " + "x" * quorum.MAX_POLICY + "\nquorum none\n",
    ],
)  # fmt: skip
def test_a_file_that_is_no_policy_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        quorum.parse_policy(text)


def test_32_of_a_kind_are_read_and_one_more_is_not() -> None:
    def policy(count: int) -> str:
        keys = [cosign.CosignerKey(name=f"w{n}", public=bytes([n]) * 32).vkey for n in range(count)]
        return "".join(f"witness w{n} {key}\n" for n, key in enumerate(keys)) + "quorum w0\n"

    assert len(quorum.parse_policy(policy(32)).witnesses) == 32
    with pytest.raises(ConfigurationError):
        quorum.parse_policy(policy(33))


def test_names_are_octets() -> None:
    kelvin, k = "\u212a", "K"
    policy = quorum.parse_policy(f"witness {kelvin} {W1}\nwitness {k} {W2}\nquorum {kelvin}\nlog {VKEY}\n")
    assert policy.check(cosigned("X1")) == HEAD
    with pytest.raises(IntegrityFailure) as refused:
        policy.check(cosigned("X2"))
    assert kelvin in (refused.value.why or "")
    latin = f"witness \xe9 {W1}\nquorum \xe9\nlog {VKEY}\n".encode("latin-1")
    assert quorum.parse_policy(latin).check(cosigned("X1")) == HEAD


@given(st.text(max_size=200))
def test_no_text_does_anything_but_be_refused(text: str) -> None:
    with pytest.raises(ConfigurationError):
        quorum.parse_policy(f"{text}\nquorum nobody-has-this-name\n")
