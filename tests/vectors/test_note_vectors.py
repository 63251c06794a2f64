"""Signed notes against published ones.

Sources: the example of Go's ``golang.org/x/mod/sumdb/note`` (key, text and signature), and the
example of C2SP tlog-checkpoint.
"""

from __future__ import annotations

import base64

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.errors import IntegrityFailure
from broker.ledger.note import Verifier, open_note, parse_head, parse_vkey, sign_note, vkey

GO_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
GO_SEED = base64.b64decode("AYEKFALVFGyNhPJEMzD1QIDr+Y7hfZx09iUvxdXHKDFz")[1:]
GO_TEXT = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
)
GO_NOTE = (
    GO_TEXT
    + "\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgK"
    + "vqfqdngotpRZb6KE6RyyBwJnAM=\n"
)
GO_OTHER_VKEY = "EnochRoot+af0cfe78+ATtqJ7zOtqQtYqOo0CpvDXNlMhV3HeJDpjrASKGLWdop"

C2SP_HEAD = """example.com/behind-the-sofa
20852163
CsUYapGGPo4dkMgIAUqom/Xajj7h2fB2MPA3j2jxq2I=
"""


def test_the_note_of_go_opens():
    assert open_note(GO_NOTE, [GO_VKEY]) == GO_TEXT
    assert open_note(GO_NOTE, [GO_OTHER_VKEY, GO_VKEY]) == GO_TEXT


def test_the_note_of_go_does_not_open_with_another_key_or_text():
    with pytest.raises(IntegrityFailure):
        open_note(GO_NOTE, [GO_OTHER_VKEY])
    with pytest.raises(IntegrityFailure):
        open_note(GO_NOTE.replace("cryptography", "cryptographY"), [GO_VKEY])


def test_we_write_the_note_of_go_byte_for_byte():
    key = Ed25519PrivateKey.from_private_bytes(GO_SEED)
    verifier = Verifier(name="PeterNeumann", public=key.public_key().public_bytes_raw())
    assert verifier.vkey == vkey("PeterNeumann", key.public_key()) == GO_VKEY
    assert verifier.key_id.hex() == "c74f20a3"
    assert sign_note(GO_TEXT, verifier, key.sign) == GO_NOTE


def test_verifier_keys_of_go_read_back():
    for text in (GO_VKEY, GO_OTHER_VKEY):
        assert parse_vkey(text).vkey == text


def test_the_tree_head_of_c2sp():
    head = parse_head(C2SP_HEAD)
    assert (head.origin, head.size) == ("example.com/behind-the-sofa", 20_852_163)
    assert head.root.hex() == "0ac5186a91863e8e1d90c808014aa89bf5da8e3ee1d9f07630f0378f68f1ab62"
