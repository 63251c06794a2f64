"""A witness cosigns what extends what it cosigned, answers the rest as C2SP says, and forgets nothing."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from broker.errors import ConfigurationError
from broker.ledger import cosign, note
from broker.runtime import SystemClock, SystemEntropy
from broker.witness.keys import WitnessKey, create_key, read_key
from broker.witness.service import SIZE, Reply, WitnessService
from broker.witness.state import WitnessState, origin_hash
from tests.witness_log import SmallLog

NAME = "witness.example/w1"


@pytest.fixture
def key(tmp_path: Path) -> WitnessKey:
    return create_key(tmp_path / "key", name=NAME, entropy=SystemEntropy())


@pytest.fixture
def log() -> SmallLog:
    return SmallLog()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "state"


@pytest.fixture
def witness(key: WitnessKey, log: SmallLog, folder: Path) -> WitnessService:
    return witness_of(key, log, folder)


def witness_of(key: WitnessKey, log: SmallLog, folder: Path) -> WitnessService:
    return WitnessService(key=key, logs=[log.verifier], state=WitnessState(folder), clock=SystemClock())


def size_of(reply: Reply) -> int:
    assert (reply.status, reply.kind) == (409, SIZE)
    assert reply.body.endswith(b"\n")
    return int(reply.body)


def test_what_grows_is_cosigned(witness: WitnessService, key: WitnessKey, log: SmallLog) -> None:
    old = 0
    for size in (1, 2, 3, 7, 8, 256, 300):
        reply = witness.add_checkpoint(log.request(old, size))
        assert reply.status == 200, reply.body
        [line] = cosign.parse_response(reply.body)
        merged = cosign.merge(log.signed(size), [line])
        [when] = cosign.cosignatures(merged, [key.public]).values()
        assert abs(when - SystemClock().now() // 1000) < 60
        assert witness.checkpoint(origin_hash(log.verifier.name)).body.decode() == merged
        old = size


def test_the_same_head_is_cosigned_again(witness: WitnessService, log: SmallLog) -> None:
    witness.add_checkpoint(log.request(0, 5))
    assert witness.add_checkpoint(log.request(5, 5)).status == 200


def test_an_empty_log_is_cosigned_if_it_is_empty(witness: WitnessService, log: SmallLog) -> None:
    assert witness.add_checkpoint(log.request(0, 0)).status == 200
    odd = note.TreeHead(origin=log.verifier.name, size=0, root=bytes(32))
    signed = note.sign_head(odd, log.verifier, log.key.sign)
    assert witness.add_checkpoint(cosign.build_request(0, [], signed)).status == 422


def test_whoever_has_the_wrong_size_is_told_the_right_one(witness: WitnessService, log: SmallLog) -> None:
    assert size_of(witness.add_checkpoint(log.request(3, 5))) == 0
    witness.add_checkpoint(log.request(0, 5))
    for old, size in ((0, 9), (4, 9), (6, 9), (3, 3), (0, 3)):
        assert size_of(witness.add_checkpoint(log.request(old, size))) == 5
    assert witness.add_checkpoint(log.request(5, 9)).status == 200


def test_a_fork_is_refused(witness: WitnessService, log: SmallLog) -> None:
    witness.add_checkpoint(log.request(0, 5))
    other = SmallLog(fork="other")
    assert witness.add_checkpoint(other.request(5, 9)).status == 422
    assert witness.add_checkpoint(other.request(5, 5)).status == 422
    # The right proof with another head, and the right head with another proof.
    assert witness.add_checkpoint(cosign.build_request(5, log.proof(5, 9), other.signed(9))).status == 422
    assert witness.add_checkpoint(cosign.build_request(5, log.proof(4, 9), log.signed(9))).status == 422
    assert witness.add_checkpoint(cosign.build_request(5, [], log.signed(9))).status == 422
    assert size_of(witness.add_checkpoint(log.request(0, 9))) == 5


def test_a_proof_from_nothing_is_empty(witness: WitnessService, log: SmallLog) -> None:
    body = cosign.build_request(0, log.proof(2, 5), log.signed(5))
    assert witness.add_checkpoint(body).status == 422


def test_an_unknown_log_is_not_found(witness: WitnessService) -> None:
    other = SmallLog("other.example/log")
    assert witness.add_checkpoint(other.request(0, 5)).status == 404
    assert witness.checkpoint(origin_hash("other.example/log")).status == 404
    assert witness.checkpoint("x").status == 404


def test_a_log_that_was_never_cosigned_has_no_checkpoint(witness: WitnessService, log: SmallLog) -> None:
    assert witness.checkpoint(origin_hash(log.verifier.name)).status == 404


def test_another_key_of_the_same_name_is_forbidden(witness: WitnessService, log: SmallLog) -> None:
    impostor = SmallLog(seed=b"M")
    assert witness.add_checkpoint(impostor.request(0, 5)).status == 403
    line = log.signed(5).splitlines()[-1]
    forged = impostor.signed(6).rpartition("— ")[0] + line + "\n"
    assert witness.add_checkpoint(cosign.build_request(0, [], forged)).status == 403


def test_an_old_size_beyond_the_head_is_a_bad_request(witness: WitnessService, log: SmallLog) -> None:
    assert witness.add_checkpoint(cosign.build_request(6, [], log.signed(5))).status == 400
    for body in (b"", b"old 0\n\n", b"x" * (cosign.MAX_REQUEST + 1), b"old 0\n\n\xff"):
        assert witness.add_checkpoint(body).status == 400


def test_extension_lines_are_cosigned_with_the_head(
    witness: WitnessService, key: WitnessKey, log: SmallLog
) -> None:
    text = note.head_text(log.head(5)) + "more.example some words\n"
    signed = note.sign_note(text, log.verifier, log.key.sign)
    reply = witness.add_checkpoint(cosign.build_request(0, [], signed))
    merged = cosign.merge(signed, cosign.parse_response(reply.body))
    assert key.public.vkey in cosign.cosignatures(merged, [key.public])
    empty = note.head_text(log.head(5)).rstrip("\n") + "\n"
    for bad in (empty.replace("\n5\n", "\n05\n"), "example.com/log\n5\n", "example.com/log\nx\ny\n"):
        body = cosign.build_request(5, [], note.sign_note(bad, log.verifier, log.key.sign))
        assert witness.add_checkpoint(body).status == 400


def test_foreign_signatures_are_not_kept(witness: WitnessService, log: SmallLog) -> None:
    other = SmallLog(seed=b"M").signed(5).splitlines()[-1]
    signed = cosign.merge(log.signed(5), [other])
    assert witness.add_checkpoint(cosign.build_request(0, [], signed)).status == 200
    assert other not in witness.checkpoint(origin_hash(log.verifier.name)).body.decode()


# -- what it remembers ----------------------------------------------------------------------------------


def test_a_restart_forgets_nothing(
    witness: WitnessService, key: WitnessKey, log: SmallLog, folder: Path
) -> None:
    witness.add_checkpoint(log.request(0, 5))
    assert size_of(witness_of(key, log, folder).add_checkpoint(log.request(0, 9))) == 5


@pytest.mark.parametrize("damage", [b"", b"x", None], ids=["empty", "noise", "one-byte"])
def test_a_damaged_state_is_refused(
    witness: WitnessService, key: WitnessKey, log: SmallLog, folder: Path, damage: bytes | None
) -> None:
    witness.add_checkpoint(log.request(0, 5))
    [path] = folder.glob("*.checkpoint")
    was = path.read_bytes()
    path.write_bytes(was.replace(b"\n5\n", b"\n4\n") if damage is None else damage)
    with pytest.raises(ConfigurationError):
        witness.add_checkpoint(log.request(5, 9))
    with pytest.raises(ConfigurationError):
        witness_of(key, log, folder)


def test_the_state_of_another_witness_is_refused(
    witness: WitnessService, log: SmallLog, folder: Path, tmp_path: Path
) -> None:
    witness.add_checkpoint(log.request(0, 5))
    other = create_key(tmp_path / "other", name=NAME, entropy=SystemEntropy())
    with pytest.raises(ConfigurationError):
        witness_of(other, log, folder)


def test_what_cannot_be_kept_is_not_cosigned(
    witness: WitnessService, log: SmallLog, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(path: Path, data: bytes, *, mode: int = 0o600) -> None:
        raise ConfigurationError(f"cannot write {path}")

    monkeypatch.setattr("broker.client.private_files.write_file", full)
    with pytest.raises(ConfigurationError):
        witness.add_checkpoint(log.request(0, 5))
    monkeypatch.undo()
    assert size_of(witness.add_checkpoint(log.request(1, 5))) == 0


def test_two_branches_at_once_are_never_both_cosigned(key: WitnessKey, log: SmallLog, folder: Path) -> None:
    """Services of their own on one folder, as processes would be."""
    other = SmallLog(fork="other")
    branches = [branch.request(0, 5) for branch in (log, other)]
    for _ in range(10):
        services = [witness_of(key, log, folder) for _ in range(6)]
        with ThreadPoolExecutor(len(services)) as pool:
            asked = [
                pool.submit(service.add_checkpoint, branches[at % 2]) for at, service in enumerate(services)
            ]
        replies = [each.result().status for each in asked]
        assert sorted(replies) == [200, 409, 409, 409, 409, 409]
        for path in folder.glob("*.checkpoint"):
            path.unlink()


# -- keys -----------------------------------------------------------------------------------------------


def test_a_key_file_is_read_again_and_only_by_its_owner(key: WitnessKey, tmp_path: Path) -> None:
    path = tmp_path / "key"
    assert path.stat().st_mode & 0o777 == 0o600
    assert read_key(path).public == key.public
    with pytest.raises(ConfigurationError):
        create_key(path, name=NAME, entropy=SystemEntropy())
    path.chmod(0o640)
    with pytest.raises(ConfigurationError):
        read_key(path)


@pytest.mark.parametrize(
    "change", [lambda t: "", lambda t: t[:-6], lambda t: t.replace("w1", "w2"), lambda t: t + "x"]
)
def test_another_file_is_no_key(key: WitnessKey, tmp_path: Path, change: object) -> None:
    path = tmp_path / "key"
    text = path.read_text()
    path.write_text(change(text))  # type: ignore[operator]  # one of the lambdas above
    with pytest.raises(ConfigurationError) as refused:
        read_key(path)
    assert text.split("+")[-1].strip()[:20] not in str(refused.value)
    with pytest.raises(ConfigurationError):
        create_key(tmp_path / "new", name="not a name", entropy=SystemEntropy())
