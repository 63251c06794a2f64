#!/usr/bin/env python3
"""Verify an evidence kit, offline: ``python3 verify.py [--vkey KEY] [--witness KEY]... [DIR]``.

One file, which needs Python 3.9 or later and the package ``cryptography``, and nothing else of whoever
made the kit. Exit status: 0 everything holds; 6 something does not, and the first thing is named;
2 there is no kit to verify.

What it shows: that the log's key signed a tree which has every entry of the kit, byte by byte; that the
records and the evidence are those that the entries commit to; that each signed request was signed by the
key that an entry of the same log bound to the principal; that the policies are those that the decisions
name; and that the kit itself was put on record when it was made. What it cannot show: that the log's key
is the right one (get it from somebody else and give it with --vkey), and that the kit has every entry that
the question asked for (a complete export shows that).
"""

from __future__ import annotations

import argparse
import base64
import binascii
import hashlib
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

SCHEMA = "broker/kit/v1"
MAGIC = "c2sp.org/tlog-proof@v1"
MANIFEST = "manifest.json"
RECEIPT = "export.tlog-proof"
"""Proof that the manifest's digest is on record: the one file that the manifest does not list."""
MOST_BYTES = 64 << 20
"""Of one file: nothing in a kit is as large."""
_BINDS_KEYS = ("enrolment", "token")
_NAMES_LOG_KEY = ("genesis", "key-rotation", "origin")


class KitError(Exception):
    """Something in the kit does not hold; the text says what."""


def check(holds: Any, problem: str) -> None:
    """Raises KitError with ``problem`` unless ``holds``."""
    if not holds:
        raise KitError(problem)


# -- forms ----------------------------------------------------------------------------------------------


def sha256(data: bytes) -> str:
    """``sha256:<hex>`` of bytes."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def parse_json(data: bytes, what: str) -> dict[str, Any]:
    """A JSON object without a member twice. Raises KitError."""

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        check(len(found) == len(pairs), f"{what} has a member twice")
        return found

    try:
        value = json.loads(data.decode("utf-8"), object_pairs_hook=once)
    except (ValueError, RecursionError) as exc:
        raise KitError(f"{what} is not JSON") from exc
    check(isinstance(value, dict), f"{what} is not a JSON object")
    found: dict[str, Any] = value
    return found


def decode64(text: Any, what: str, *, url: bool = False) -> bytes:
    """Base64 in its only spelling. Raises KitError."""
    check(isinstance(text, str), f"{what} is not base64")
    try:
        data = base64.b64decode(
            text + "=" * (-len(text) % 4) if url else text, altchars=b"-_" if url else None, validate=True
        )
    except (binascii.Error, ValueError) as exc:
        raise KitError(f"{what} is not base64") from exc
    check((encode64url(data) if url else encode64(data)) == text, f"{what} is not base64 in its only form")
    return data


def encode64(data: bytes) -> str:
    """Standard base64."""
    return base64.b64encode(data).decode("ascii")


def encode64url(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode("ascii")


def parse_time(text: Any, what: str) -> str:
    """An RFC 3339 time in UTC with milliseconds: as text it sorts as it does as a time. Raises KitError."""
    fits = isinstance(text, str) and re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", text, re.ASCII)
    check(fits, f"{what} is not a time")
    return str(text)


# -- the log: signed notes, receipts (C2SP signed-note, tlog-checkpoint, tlog-proof; RFC 9162) ----------


def open_vkey(text: str, kind: int) -> tuple[str, bytes, bytes]:
    """(name, key id, public key) of a verifier key ``name+hash+base64``. Raises KitError."""
    name, _, rest = text.partition("+")
    wanted, _, encoded = rest.partition("+")
    data = decode64(encoded, "a verifier key")
    check(len(data) == 33 and data[0] == kind and name, "a verifier key is not of the expected kind")
    key_id = hashlib.sha256(name.encode() + b"\n" + data).digest()[:4]
    check(key_id.hex() == wanted, "a verifier key does not have its own hash")
    return name, key_id, data[1:]


def signatures(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """(text, [(name, key id + signature)]) of a signed note. Raises KitError."""
    text, blank, lines = note.rpartition("\n\n")
    check(blank and lines.endswith("\n"), "a tree head is not a signed note")
    found = []
    for line in lines[:-1].split("\n"):
        match = re.fullmatch(r"\u2014 ([^\s+]+) (\S+)", line)
        if match is None:
            raise KitError("a tree head has a line that is no signature")
        found.append((match[1], decode64(match[2], "a signature of a tree head")))
    return text + "\n", found


def verify_ed25519(public: bytes, signature: bytes, message: bytes, what: str) -> None:
    """Raises KitError unless the signature holds."""
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, message)
    except (InvalidSignature, ValueError) as exc:
        raise KitError(f"{what} does not hold") from exc


def open_head(note: str, vkey: str) -> tuple[str, int, bytes]:
    """(origin, size, root) of a tree head that the log's key signed. Raises KitError."""
    name, key_id, public = open_vkey(vkey, 1)
    text, found = signatures(note)
    mine = [blob[4:] for signer, blob in found if signer == name and blob[:4] == key_id]
    check(len(mine) == 1, "a tree head is not signed by the log's key")
    verify_ed25519(public, mine[0], text.encode(), "the log's signature of a tree head")
    lines = text.split("\n")
    check(len(lines) >= 4 and lines[0] == name, "a tree head is of another log")
    check(re.fullmatch(r"0|[1-9][0-9]{0,15}", lines[1]), "a tree head has no size")
    root = decode64(lines[2], "the root of a tree head")
    check(len(root) == 32, "the root of a tree head is no hash")
    return name, int(lines[1]), root


def verify_cosignature(note: str, vkey: str) -> None:
    """A witness cosigned the tree head. Raises KitError unless it did."""
    name, key_id, public = open_vkey(vkey, 4)
    text, found = signatures(note)
    mine = [blob[4:] for signer, blob in found if signer == name and blob[:4] == key_id]
    check(len(mine) == 1 and len(mine[0]) == 72, f"witness {name} did not cosign the checkpoint")
    time = int.from_bytes(mine[0][:8], "big")
    message = f"cosignature/v1\ntime {time}\n{text}".encode()
    verify_ed25519(public, mine[0][8:], message, f"the cosignature of witness {name}")


def node(left: bytes, right: bytes) -> bytes:
    """RFC 9162: hash of an inner node."""
    return hashlib.sha256(b"\x01" + left + right).digest()


def verify_inclusion(entry: bytes, index: int, size: int, proof: list[bytes], root: bytes) -> None:
    """RFC 9162 section 2.1.3.2. Raises KitError."""
    check(0 <= index < size, f"entry {index} is not in a tree of {size} entries")
    at, last, value = index, size - 1, hashlib.sha256(b"\x00" + entry).digest()
    for other in proof:
        check(last > 0, f"the proof of entry {index} is too long")
        if at & 1 or at == last:
            value = node(other, value)
            while not at & 1 and at:
                at, last = at >> 1, last >> 1
        else:
            value = node(value, other)
        at, last = at >> 1, last >> 1
    check(last == 0 and value == root, f"the proof of entry {index} does not give the signed root")


def verify_receipt(text: str, vkey: str) -> tuple[int, bytes, str]:
    """(index, entry, signed note) of a receipt that holds. Raises KitError."""
    front, blank, note = text.partition("\n\n")
    lines = front.split("\n")
    check(blank and lines[0] == MAGIC and len(lines) >= 3, "a receipt is not of the expected form")
    match = re.fullmatch(r"index (0|[1-9][0-9]{0,15})", lines[2])
    check(lines[1].startswith("extra ") and match, "a receipt has no entry or no index")
    index = int(match[1]) if match else -1
    entry = decode64(lines[1][6:], "the entry of a receipt")
    proof = [decode64(line, "a hash of a receipt") for line in lines[3:]]
    check(all(len(each) == 32 for each in proof), "a hash of a receipt has another size")
    _, size, root = open_head(note, vkey)
    verify_inclusion(entry, index, size, proof, root)
    return index, entry, note


# -- the signed request (RFC 9449, with the digests of body and query) ----------------------------------


def thumbprint(jwk: dict[str, Any]) -> str:
    """RFC 7638 thumbprint of a public key, base64url."""
    members = ("crv", "kty", "x", "y") if jwk.get("kty") == "EC" else ("crv", "kty", "x")
    text = json.dumps({name: jwk.get(name) for name in members}, separators=(",", ":"), sort_keys=True)
    return encode64url(hashlib.sha256(text.encode()).digest())


def verify_jws(text: Any, what: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """(key, claims) of a proof that its own key signed: Ed25519 or ES256. Raises KitError."""
    parts = text.split(".") if isinstance(text, str) else []
    check(len(parts) == 3, f"{what} is not signed")
    header = parse_json(decode64(parts[0], what, url=True), what)
    jwk: dict[str, Any] = header.get("jwk") or {}
    signature = decode64(parts[2], what, url=True)
    check(header.get("typ") == "dpop+jwt" and isinstance(jwk, dict), f"{what} is not a proof with its key")
    message, kind = f"{parts[0]}.{parts[1]}".encode(), (jwk.get("kty"), jwk.get("crv"), header.get("alg"))
    if kind in (("OKP", "Ed25519", "EdDSA"), ("OKP", "Ed25519", "Ed25519")):
        verify_ed25519(decode64(jwk.get("x"), what, url=True), signature, message, f"the signature of {what}")
    else:
        check(kind == ("EC", "P-256", "ES256") and len(signature) == 64, f"{what} has an unknown algorithm")
        point = b"\x04" + decode64(jwk.get("x"), what, url=True) + decode64(jwk.get("y"), what, url=True)
        r, s = int.from_bytes(signature[:32], "big"), int.from_bytes(signature[32:], "big")
        try:
            public = ec.EllipticCurvePublicKey.from_encoded_point(ec.SECP256R1(), point)
            public.verify(encode_dss_signature(r, s), message, ec.ECDSA(hashes.SHA256()))
        except (InvalidSignature, ValueError) as exc:
            raise KitError(f"the signature of {what} does not hold") from exc
    return jwk, parse_json(decode64(parts[1], what, url=True), what)


def digest_field(digest: bytes) -> str:
    """RFC 9530: the value of a digest field."""
    return f"sha-256=:{encode64(digest)}:"


def asker(entry: dict[str, Any]) -> tuple[Any, Any]:
    """(principal, thumbprint) of who signed the request behind an entry; None where it does not say.

    A token that was minted for another key names its minter.
    """
    who = entry.get("minter", entry)
    return who.get("principal"), who.get("jkt")


def verify_request(entry: dict[str, Any], evidence: dict[str, Any], what: str) -> str:
    """The request in the evidence was signed, as it stands, by the entry's key; its thumbprint.

    Raises:
        KitError: It was not.
    """
    jwk, claims = verify_jws(evidence.get("proof"), what)
    jkt = thumbprint(jwk)
    _, expected = asker(entry)
    check(expected in (None, jkt), f"{what} is signed by another key than its entry names")
    path, token = evidence.get("path"), evidence.get("token")
    check(claims.get("htm") == evidence.get("method"), f"{what} was signed for another method")
    check(urlsplit(str(claims.get("htu"))).path == path, f"{what} was signed for another path")
    query = str(evidence.get("query", "")).encode()
    covered = digest_field(hashlib.sha256(query).digest()) if query else None
    # Our own API demands the digests; stock clients of the token endpoint may leave them out.
    needed = str(path).startswith("/v1/") or "query_digest" in claims
    check(not needed or claims.get("query_digest") == covered, f"{what} has another query")
    if isinstance(token, dict) and "ath" in claims:
        known = encode64url(bytes.fromhex(str(token.get("sha256"))))
        check(claims["ath"] == known, f"{what} was signed for another token")
    if str(path).startswith("/v1/"):
        _verify_body(entry, evidence, claims, what)
    return jkt


def _verify_body(entry: dict[str, Any], evidence: dict[str, Any], claims: dict[str, Any], what: str) -> None:
    if "body_digest" in evidence:
        digest = bytes.fromhex(str(evidence["body_digest"])[7:])
        check(claims.get("content_digest") == digest_field(digest), f"{what} has another body")
        return
    body = decode64(evidence.get("body"), what, url=True)
    digest = hashlib.sha256(body).digest()
    check(claims.get("content_digest") == digest_field(digest), f"{what} has another body")
    if not body or entry["type"] == "denial":
        return
    asked = parse_json(body, f"the body of {what}")
    for name in ("request_id", "artifact"):
        same = name not in asked or name not in entry or asked[name] == entry[name]
        check(same, f"{what} asked for another {name} than its entry says")


# -- the kit --------------------------------------------------------------------------------------------


class Kit:
    """A kit in a folder, read only as far as its manifest lists it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest_bytes = self.read_file(MANIFEST)
        self.manifest = parse_json(self.manifest_bytes, MANIFEST)
        check(self.manifest.get("schema") == SCHEMA, f"{MANIFEST} is not a {SCHEMA}")
        self.files: dict[str, str] = self.manifest.get("files", {})
        self.entries: dict[int, dict[str, Any]] = {}

    def read_file(self, name: str) -> bytes:
        """The bytes of a file. Raises KitError."""
        path = self.folder / name
        try:
            check(not path.is_symlink() and path.is_file(), f"{name} is missing")
            check(path.stat().st_size <= MOST_BYTES, f"{name} is too large")
            return path.read_bytes()
        except OSError as exc:
            raise KitError(f"{name} cannot be read") from exc

    def read_text(self, name: str) -> str:
        """The text of a file. Raises KitError."""
        try:
            return self.read_file(name).decode("utf-8")
        except UnicodeDecodeError as exc:
            raise KitError(f"{name} is not a text") from exc

    def names(self) -> Iterator[str]:
        """Every file that is there."""
        for path in sorted(self.folder.rglob("*")):
            if path.is_symlink() or not path.is_dir():
                yield path.relative_to(self.folder).as_posix()


def verify_kit(folder: Path, vkey: str | None = None, witnesses: tuple[str, ...] = ()) -> dict[str, Any]:
    """Verify everything; a summary of what holds.

    Args:
        folder: The kit.
        vkey: The log's verifier key from somebody else; None takes the one that the kit brings.
        witnesses: Verifier keys of witnesses (type 0x04) that must have cosigned the checkpoint.

    Raises:
        KitError: The first thing that does not hold.
    """
    kit = Kit(folder)
    key = vkey or str(kit.manifest.get("vkey"))
    check(kit.manifest.get("vkey") == key, "the kit is of a log with another key")
    # 1. The kit is the one that was put on record, file by file.
    _verify_record(kit, key)
    _verify_files(kit)
    # 2. One checkpoint, and every entry under it.
    note = kit.read_text("checkpoint")
    origin, size, root = open_head(note, key)
    stated = (kit.manifest.get("origin"), kit.manifest.get("size"), kit.manifest.get("root"))
    check(stated == (origin, size, encode64url(root)), "the checkpoint is not the one that the kit states")
    for witness in witnesses:
        verify_cosignature(note, witness)
    _verify_entries(kit, key, note)
    # 3. What the entries commit to.
    counts = {"evidence": 0, "erased": 0, "requests": 0}
    for index in kit.manifest["entries"]:
        _verify_commitments(kit, index, counts)
    _verify_bundles(kit)
    _verify_log_key(kit, key)
    return {"origin": origin, "size": size, "entries": len(kit.manifest["entries"]), **counts}


def _verify_record(kit: Kit, vkey: str) -> None:
    text = kit.read_text(RECEIPT)
    _, data, note = verify_receipt(text, vkey)
    # A line more than the log's own would be a byte that nothing covers.
    check(len(signatures(note)[1]) == 1, f"{RECEIPT} has more than the log's signature")
    entry = parse_json(data, "the entry that records the kit")
    check((entry.get("type"), entry.get("format")) == ("export", "kit"), f"{RECEIPT} records something else")
    check(entry.get("digest") == sha256(kit.manifest_bytes), f"{MANIFEST} is not the one that is on record")


def _verify_files(kit: Kit) -> None:
    there = set(kit.names()) - {MANIFEST, RECEIPT}
    extra = sorted(there - set(kit.files))
    check(not extra, f"{extra[0] if extra else ''} is no part of the kit")
    for name, digest in sorted(kit.files.items()):
        # A name that leads out of the folder is not among those that are there.
        check(name in there, f"{name} is missing")
        check(sha256(kit.read_file(name)) == digest, f"{name} is not the file that the kit was made with")


def _verify_entries(kit: Kit, vkey: str, note: str) -> None:
    for name in kit.files:
        match = re.fullmatch(r"entries/([0-9]{8,16})\.json", name)
        if match is None:
            continue
        data, stem = kit.read_file(name), match[1]
        index, proven, under = verify_receipt(kit.read_text(f"receipts/{stem}.tlog-proof"), vkey)
        check(index == int(stem) and proven == data, f"the receipt of entry {stem} proves another entry")
        check(under == note, f"the receipt of entry {stem} is under another checkpoint")
        kit.entries[index] = parse_json(data, name)
    missing = [index for index in kit.manifest["entries"] if index not in kit.entries]
    check(not missing, f"entry {missing[0] if missing else 0} is missing")


def _verify_commitments(kit: Kit, index: int, counts: dict[str, int]) -> None:
    entry, stem = kit.entries[index], f"{index:08d}"
    if "selection" in entry:
        record = kit.read_file(f"records/{stem}.json")
        check(sha256(record) == entry["selection"]["digest"], f"the record of entry {index} is another")
    if "evidence" not in entry:
        return
    eraser = kit.manifest.get("erased", {}).get(str(index))
    if eraser is not None:
        _verify_erasure(kit, index, eraser)
        counts["erased"] += 1
        return
    evidence = kit.read_file(f"evidence/{stem}.json")
    salt = decode64(kit.read_text(f"evidence/{stem}.salt").rstrip("\n"), f"the salt of {index}", url=True)
    check(sha256(salt + evidence) == entry["evidence"], f"the evidence of entry {index} is another")
    counts["evidence"] += 1
    found = parse_json(evidence, f"the evidence of entry {index}")
    if found.get("proof"):
        jkt = verify_request(entry, found, f"the request of entry {index}")
        # Whoever is refused a token has no key that is bound yet: that request shows its key alone.
        if entry["type"] != "denial" or not str(found.get("path")).startswith("/oauth/"):
            _verify_binding(kit, index, jkt)
        counts["requests"] += 1


def _verify_erasure(kit: Kit, index: int, eraser: int) -> None:
    entry, found = kit.entries[index], kit.entries.get(eraser)
    if found is None or found.get("type") != "erasure" or eraser <= index:
        raise KitError(f"the evidence of entry {index} is missing, and no erasure is shown")
    covers = found["subject"] == entry.get("principal")
    covers = covers and parse_time(entry["time"], "a time") < parse_time(found["until"], "a time")
    check(covers, f"the erasure that is shown does not cover the evidence of entry {index}")


def _verify_binding(kit: Kit, index: int, jkt: str) -> None:
    who, _ = asker(kit.entries[index])
    if who is None:
        return
    for at, entry in kit.entries.items():
        if at <= index and entry["type"] in _BINDS_KEYS and entry.get("principal") == who:
            bound = entry["key"]["jkt"] if entry["type"] == "enrolment" else entry.get("jkt")
            if bound == jkt:
                return
    raise KitError(f"no entry of the kit binds the key that signed the request of entry {index} to {who}")


def _verify_bundles(kit: Kit) -> None:
    for index in kit.manifest["entries"]:
        entry = kit.entries[index]
        for digest in {entry.get("decision", {}).get("bundle"), entry.get("bundle")} - {None}:
            name = f"policies/{digest[7:]}.json"
            check(name in kit.files, f"the policies that entry {index} names are missing")
            check(sha256(kit.read_file(name)) == digest, f"{name} is not the bundle of its digest")


def _verify_log_key(kit: Kit, vkey: str) -> None:
    named = [entry.get("vkey") for entry in kit.entries.values() if entry["type"] in _NAMES_LOG_KEY]
    check(vkey in named, "no entry of the kit names the key that signed its checkpoint")


def main(arguments: list[str] | None = None) -> int:
    """The command; returns the exit status."""
    parser = argparse.ArgumentParser(description="Verify an evidence kit, offline.")
    parser.add_argument("folder", nargs="?", default=str(Path(__file__).resolve().parent))
    parser.add_argument("--vkey", help="the log's verifier key, from somebody other than the kit's maker")
    parser.add_argument("--witness", action="append", default=[], help="a witness that must have cosigned")
    asked = parser.parse_args(arguments)
    if not (Path(asked.folder) / MANIFEST).is_file():
        sys.stderr.write(f"error: there is no evidence kit in {asked.folder}\n")
        return 2
    try:
        found = verify_kit(Path(asked.folder), asked.vkey, tuple(asked.witness))
    except KitError as exc:
        sys.stderr.write(f"error: {exc}\n")
        return 6
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        sys.stderr.write(f"error: the kit is not of the expected form ({type(exc).__name__})\n")
        return 6
    sys.stdout.write(
        "ok: {entries} entries of {origin}, in a signed tree of {size}; {requests} signed requests hold, "
        "{evidence} pieces of evidence are there, {erased} were erased\n".format(**found)
    )
    if asked.vkey is None:
        sys.stdout.write("the log's key was taken from the kit itself: compare it, or give it with --vkey\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
