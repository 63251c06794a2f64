"""The witness's private key: one line of text in a file that only its owner reads."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from broker.client import private_files
from broker.errors import ConfigurationError, IntegrityFailure
from broker.ledger.cosign import COSIGNATURE_V1, CosignerKey
from broker.ledger.note import encode_base64, parse_base64
from broker.ports import Entropy

SEED_SIZE: Final = 32
_LINE: Final = re.compile(r"PRIVATE\+KEY\+([^\s+]+)\+([0-9a-f]{8})\+([A-Za-z0-9+/]+={0,2})\n?")


@dataclass(frozen=True, kw_only=True)
class WitnessKey:
    """A witness's key pair."""

    public: CosignerKey
    private: Ed25519PrivateKey = field(repr=False)


def create_key(path: Path, *, name: str, entropy: Entropy) -> WitnessKey:
    """Draw a key and write its file, mode 0600; an existing file is never replaced.

    Args:
        path: The file; its folder exists.
        name: The key's name: the witness's own, such as ``witness.example/w1``.
        entropy: Where the key comes from.

    Raises:
        ConfigurationError: The name is no key name, the file exists, or it cannot be written.
    """
    seed = entropy.random_bytes(SEED_SIZE)
    key = _from_seed(name, seed)
    encoded = encode_base64(COSIGNATURE_V1 + seed)
    line = f"PRIVATE+KEY+{name}+{key.public.key_id.hex()}+{encoded}\n"
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            file.write(line)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as exc:
        raise ConfigurationError(f"the key file {path} exists", next="move it away first") from exc
    except OSError as exc:
        raise ConfigurationError(f"the key file {path} cannot be written", why=exc.strerror) from exc
    return key


def read_key(path: Path) -> WitnessKey:
    """The key of a file.

    Raises:
        ConfigurationError: Missing, open to others, or not a witness's key.
    """
    data = private_files.find_file(path, private=True)
    if data is None:
        raise ConfigurationError(f"there is no key file {path}", next=f"broker witness key --out {path}")
    found = _LINE.fullmatch(data.decode("utf-8", "replace"))
    # What is wrong with it is not said: the reason would quote the file.
    wrong = ConfigurationError(f"{path} is not a witness's key file")
    if found is None:
        raise wrong
    try:
        encoded = parse_base64(found[3])
    except IntegrityFailure as exc:
        raise wrong from exc
    if encoded[:1] != COSIGNATURE_V1 or len(encoded) != 1 + SEED_SIZE:
        raise wrong
    key = _from_seed(found[1], encoded[1:])
    if key.public.key_id.hex() != found[2]:
        raise wrong
    return key


def _from_seed(name: str, seed: bytes) -> WitnessKey:
    private = Ed25519PrivateKey.from_private_bytes(seed)
    public = CosignerKey(name=name, public=private.public_key().public_bytes_raw())
    return WitnessKey(public=public, private=private)
