"""The contract of ``ports.Ledger`` for appends, on SQLite and on PostgreSQL."""

# ruff: noqa: F811 - fixtures are imported, and named again where they are used

from __future__ import annotations

import threading
from dataclasses import replace

import pytest
from sqlalchemy import event, text

from broker import limits
from broker.canonical import sha256_digest
from broker.db import LedgerStore
from broker.drafts import Absent, Charge, Draft, NewEntry
from broker.errors import (
    Conflict,
    InternalError,
    InvalidRequest,
    NotFound,
    OverBudget,
    ReplayedProof,
    TooLarge,
)
from broker.model import Enrolment, Grant, Group, IndexRow, Principal, Upload
from broker.ports import StaleDecision
from tests.databases import (
    append_together,
    appended,
    check_ledger,
    database_url,  # noqa: F401 - a fixture
    draft,
    entry,
    intruder,  # noqa: F401 - a fixture
    kinds,
    open_store,
    proof,
    request,
    sample_rows,
    store,  # noqa: F401 - a fixture
)

ANA = Principal(id="user:ana", roles=("engineer",), groups=("nlp",), disabled=False, created=1)


def charge(
    holder: str = "user:ana", *extents: tuple[int, int], ceiling: int | None = None, version: bytes = b"v"
) -> Charge:
    return Charge(holder=holder, version_id=version * 16, total_extents=100, extents=extents, ceiling=ceiling)


# -- entries ---------------------------------------------------------------------------------------


def test_indices_are_dense_and_the_tree_is_that_of_the_entries(store: LedgerStore) -> None:
    for size in (1, 2, 100, 200, 256):
        before = check_ledger(store)
        outcomes = append_together(store, [draft() for _ in range(size)])
        assert [appended(o).index for o in outcomes] == list(range(before, before + size))
        assert {appended(o).tail.size for o in outcomes} == {before + size}
    assert check_ledger(store) == 559


def test_a_draft_of_several_entries_answers_with_the_first(store: LedgerStore) -> None:
    store.append(draft())
    done = store.append(draft(entries=(entry("a"), entry("b"), entry("c")), rows=(ANA,)))
    assert (done.index, done.tail.size) == (1, 4)
    with store.view() as view:
        assert view.find(Principal, "user:ana") == replace(ANA, entry=1)


def test_what_was_appended_is_read_back_exactly(store: LedgerStore) -> None:
    row = IndexRow(
        time=7,
        type="grant",
        principal="user:ana",
        jkt="j",
        action="read",
        artifact="a/b",
        version="v",
        decision="allow",
        policies=("p-1", "p-2"),
        bytes=2**53 - 1,
        grant="g_1",
        purpose='naïve "quoted" \u2603',
    )
    given = NewEntry(
        data=b"\x00\xff any bytes", index=row, record=b"list", evidence=b"why", evidence_salt=b"s" * 32
    )
    done = store.append(draft(entries=(given, entry())))
    with store.view() as view:
        assert done.index == 0
        assert view.entry(0) == given.data
        assert list(view.index_rows(0, 1)) == [(0, row)]
        assert view.record(sha256_digest(b"list")) == b"list"
        assert view.evidence(0) == (b"s" * 32, b"why")
        assert view.tail() == done.tail
        for missing in (
            lambda: view.entry(2),
            lambda: view.evidence(1),
            lambda: view.record(sha256_digest(b"")),
        ):
            with pytest.raises(NotFound):
                missing()


def test_two_entries_may_commit_to_the_same_record(store: LedgerStore) -> None:
    for _ in range(2):
        store.append(draft(entries=(replace(entry(), record=b"the same list"),)))
    with store.view() as view:
        assert view.record(sha256_digest(b"the same list")) == b"the same list"


def test_an_entry_has_at_most_its_limit(store: LedgerStore) -> None:
    longest = NewEntry(data=b"x" * limits.MAX_ENTRY, index=IndexRow(time=1, type="grant"))
    assert store.append(draft(entries=(longest,))).index == 0
    with pytest.raises(TooLarge):
        store.append(draft(entries=(replace(longest, data=longest.data + b"x"),)))
    assert check_ledger(store) == 1


@pytest.mark.parametrize(
    "bad",
    [
        draft(entries=(entry(purpose="nul \0 inside"),)),
        draft(entries=(entry(purpose="half \ud800"),)),
        draft(entries=(entry(bytes=2**53),)),
        draft(rows=(replace(ANA, id="user:\0"),)),
        draft(rows=(replace(ANA, groups=("\ud800",)),)),
        draft(rows=(replace(ANA, created=2**53),)),
        draft(rows=(replace(ANA, created="1"),)),
    ],
    ids=["nul", "surrogate", "huge", "row-nul", "row-surrogate", "row-huge", "row-type"],
)
def test_what_no_database_stores_refuses_its_draft_alone(store: LedgerStore, bad: Draft) -> None:
    first, refused, last = append_together(store, [draft(), bad, draft()])
    assert isinstance(refused, InvalidRequest | InternalError)
    assert (appended(first).index, appended(last).index) == (0, 1)
    assert check_ledger(store) == 2


@pytest.mark.parametrize(
    "bad",
    [
        draft(proof=proof("\0")),
        draft(request=request(request_id="\0")),
        draft(charges=(charge("\ud800", (0, 1)),)),
        draft(entries=(replace(entry(), evidence=b"e"),)),
        draft(charges=(charge("h", (100, 1)),)),
        draft(charges=(charge("h", (-1, 1)),)),
        draft(charges=(charge("h", (0, -1)),)),
        Draft(request=request()),
        Draft(bumps_epoch=True),
        Draft(charges=(charge("h", (0, 1)),)),
    ],
)
def test_a_draft_that_cannot_be_applied_is_refused_before_it_waits(store: LedgerStore, bad: Draft) -> None:
    with pytest.raises((InvalidRequest, InternalError)):
        store.append(bad)
    assert check_ledger(store) == 0


# -- proofs and requests ---------------------------------------------------------------------------


def test_a_replay_is_refused_alone(store: LedgerStore) -> None:
    used = proof()
    store.append(Draft(proof=used))
    fresh = proof()
    outcomes = append_together(
        store, [draft(proof=used), draft(), draft(proof=fresh), draft(proof=fresh), draft(proof=proof())]
    )
    assert kinds(outcomes) == ["ReplayedProof", "Appended", "Appended", "ReplayedProof", "Appended"]
    assert [o.index for o in outcomes if not isinstance(o, Exception)] == [0, 1, 2]
    assert check_ledger(store) == 3


def test_the_same_jti_under_another_key_is_another_proof(store: LedgerStore) -> None:
    one = proof("jkt-1")
    store.append(Draft(proof=one))
    store.append(Draft(proof=replace(one, jkt="jkt-2")))
    with pytest.raises(ReplayedProof):
        store.append(Draft(proof=one))


def test_a_proof_that_may_have_been_forgotten_is_refused(store: LedgerStore) -> None:
    with pytest.raises(ReplayedProof):
        store.append(draft(proof=proof(keep=-1)))


def test_a_refused_draft_does_not_use_up_its_proof(store: LedgerStore) -> None:
    store.append(draft(bumps_epoch=True))
    mine = proof()
    with pytest.raises(StaleDecision):
        store.append(draft(proof=mine, epoch=0))
    with pytest.raises(OverBudget):
        store.append(draft(proof=mine, epoch=1, charges=(charge("h", (0, 2), ceiling=1),)))
    assert store.append(draft(proof=mine, epoch=1)).index == 1


def test_old_proofs_are_swept_in_small_steps(store: LedgerStore, intruder) -> None:
    old = [{"j": f"old-{i:03d}", "k": i} for i in range(100)]
    with intruder.begin() as connection:
        connection.execute(text("INSERT INTO replays (jkt, jti_hash, keep_until) VALUES (:j, '', :k)"), old)

    def left() -> list[str]:
        with intruder.begin() as connection:
            return [row[0] for row in connection.execute(text("SELECT jkt FROM replays ORDER BY jkt"))]

    store.append(Draft(proof=proof("kept")))
    after_one = left()
    assert after_one == ["kept", *(f"old-{i:03d}" for i in range(18, 100))]
    for _ in range(6):
        store.append(Draft(proof=proof("kept")))
    assert set(left()) == {"kept"}


def test_a_repeated_request_gets_its_first_entry_and_nothing_else(store: LedgerStore) -> None:
    mine = request(b"body")
    one = store.append(draft(request=mine, charges=(charge("h", (0, 5)),), rows=(ANA,)))
    store.append(draft())
    again_proof = proof()
    again = draft(
        request=mine,
        proof=again_proof,
        epoch=0,
        expects=(Absent(row=Principal, key=("user:ana",)),),
        charges=(charge("h", (1, 5)),),
        rows=(replace(ANA, disabled=True),),
        bumps_epoch=True,
    )
    repeated = store.append(again)
    assert (repeated.index, repeated.repeated, repeated.tail.size) == (one.index, True, 2)
    with store.view() as view:
        assert view.meter("h") == 5
        assert view.find(Principal, "user:ana") == replace(ANA, entry=0)
        assert view.epoch == 0
        assert view.find_request(mine.jkt, mine.request_id) == (mine.body_digest, 0)
        assert view.find_request("other", mine.request_id) is None
    with pytest.raises(ReplayedProof):
        store.append(replace(again))
    assert check_ledger(store) == 2


def test_a_repetition_is_decided_again_when_access_changed(store: LedgerStore) -> None:
    mine = request(b"body")
    store.append(draft(request=mine, epoch=0))
    store.append(draft(bumps_epoch=True))
    with pytest.raises(StaleDecision):
        store.append(draft(request=mine, epoch=0))
    assert store.append(draft(request=mine, epoch=1)).repeated


def test_another_body_under_the_same_request_id_conflicts(store: LedgerStore) -> None:
    store.append(draft(request=request(b"one", "same")))
    mine = proof()
    with pytest.raises(Conflict):
        store.append(draft(request=request(b"two", "same"), proof=mine))
    assert store.append(draft(request=request(b"two", "same", jkt="jkt-2"), proof=mine)).index == 1


def test_repeats_and_conflicts_are_found_inside_one_batch(store: LedgerStore) -> None:
    mine = request(b"one", "same")
    outcomes = append_together(
        store, [draft(), draft(request=mine), draft(request=mine), draft(request=request(b"two", "same"))]
    )
    assert kinds(outcomes) == ["Appended", "Appended", "Appended", "Conflict"]
    assert [(o.index, o.repeated) for o in outcomes[:3]] == [(0, False), (1, False), (1, True)]
    assert check_ledger(store) == 2


# -- decisions -------------------------------------------------------------------------------------


def test_a_change_of_epoch_in_the_same_batch_makes_what_follows_stale(store: LedgerStore) -> None:
    outcomes = append_together(
        store,
        [draft(epoch=0), draft(epoch=0, bumps_epoch=True), draft(epoch=0), draft(), draft(epoch=1)],
    )
    assert kinds(outcomes) == ["Appended", "Appended", "StaleDecision", "Appended", "Appended"]
    assert appended(outcomes[0]).tail.epoch == 1
    with store.view() as view:
        assert (view.epoch, view.tail().epoch) == (1, 1)
    with pytest.raises(StaleDecision):
        store.append(draft(epoch=0))


def test_expected_rows_must_be_unchanged(store: LedgerStore) -> None:
    nobody = Absent(row=Principal, key=("user:ana",))
    store.append(draft(expects=(nobody,), rows=(ANA,)))
    with pytest.raises(StaleDecision):
        store.append(draft(expects=(nobody,)))
    with store.view() as view:
        seen = view.find(Principal, "user:ana")
    assert seen is not None
    for other in (replace(seen, entry=5), replace(seen, roles=()), replace(seen, id="user:eve")):
        with pytest.raises(StaleDecision):
            store.append(draft(expects=(other,)))
    outcomes = append_together(
        store, [draft(expects=(seen,), rows=(replace(seen, disabled=True),)), draft(expects=(seen,))]
    )
    assert kinds(outcomes) == ["Appended", "StaleDecision"]
    with store.view() as view:
        assert view.find(Principal, "user:ana") == replace(ANA, disabled=True, entry=1)


def test_a_row_written_earlier_in_the_batch_is_seen_with_its_entry(store: LedgerStore) -> None:
    outcomes = append_together(
        store,
        [
            draft(),
            draft(rows=(ANA,)),
            draft(expects=(replace(ANA, entry=1),)),
            draft(expects=(Absent(row=Principal, key=("user:ana",)),)),
        ],
    )
    assert kinds(outcomes) == ["Appended", "Appended", "Appended", "StaleDecision"]


def test_loose_members_are_not_expected_to_stay(store: LedgerStore) -> None:
    upload = next(row for row in sample_rows() if isinstance(row, Upload))
    store.append(draft(rows=(upload,)))
    store.set_upload_parts(upload.id, '{"object":"id"}')
    stored = replace(upload, parts='{"object":"id"}', entry=0)
    with store.view() as view:
        assert view.find(Upload, upload.id) == stored
    assert store.append(draft(expects=(replace(stored, parts="{}"),))).index == 1
    with pytest.raises(NotFound):
        store.set_upload_parts("u_nobody", "{}")


def test_a_draft_without_entries_changes_loose_members_only(store: LedgerStore) -> None:
    upload = next(row for row in sample_rows() if isinstance(row, Upload))
    store.append(draft(rows=(upload,)))
    stored = replace(upload, entry=0)
    done = store.append(Draft(rows=(replace(stored, parts='{"o":"1"}'),)))
    assert (done.index, done.tail.size) == (None, 1)
    with store.view() as view:
        assert view.find(Upload, upload.id) == replace(stored, parts='{"o":"1"}')
    for row in (replace(stored, status="done"), replace(stored, entry=3), ANA):
        with pytest.raises(InternalError):
            store.append(Draft(rows=(row,)))


# -- charges ---------------------------------------------------------------------------------------


def test_an_extent_is_charged_once_for_each_holder_and_version(store: LedgerStore) -> None:
    store.append(draft(charges=(charge("h", (0, 10), (9, 5)), charge("t", (0, 10)))))
    store.append(draft(charges=(charge("h", (0, 10), (8, 7), (9, 5)),)))
    store.append(draft(charges=(charge("h", (0, 10), version=b"w"),)))
    with store.view() as view:
        assert (view.meter("h"), view.meter("t"), view.meter("nobody")) == (10 + 5 + 7 + 10, 10, 0)


def test_an_extent_that_two_drafts_of_a_batch_open_is_charged_once(store: LedgerStore) -> None:
    append_together(
        store, [draft(charges=(charge("h", (3, 10)),)), draft(charges=(charge("h", (3, 10), (4, 1)),))]
    )
    with store.view() as view:
        assert view.meter("h") == 11


def test_a_ceiling_is_reached_and_never_passed(store: LedgerStore) -> None:
    store.append(draft(charges=(charge("h", (0, 10), ceiling=10),)))
    with pytest.raises(OverBudget, match="h"):
        store.append(draft(charges=(charge("h", (1, 1), ceiling=10),)))
    # What was opened before costs nothing, also when the ceiling has come down since.
    store.append(draft(charges=(charge("h", (0, 10), ceiling=3),)))
    with store.view() as view:
        assert view.meter("h") == 10


def test_all_charges_of_a_draft_are_made_or_none(store: LedgerStore) -> None:
    outcomes = append_together(
        store,
        [
            draft(charges=(charge("a", (0, 6), ceiling=10), charge("b", (0, 6), ceiling=5))),
            draft(charges=(charge("a", (0, 6), ceiling=10),)),
            draft(charges=(charge("a", (1, 5), ceiling=10),)),
            draft(charges=(charge("a", (1, 4), ceiling=10),)),
            draft(charges=(charge("c", (0, 4), ceiling=7), charge("c", (0, 4), ceiling=7, version=b"w"))),
        ],
    )
    assert kinds(outcomes) == ["OverBudget", "Appended", "OverBudget", "Appended", "OverBudget"]
    with store.view() as view:
        assert [view.meter(holder) for holder in "abc"] == [10, 0, 0]


# -- group commit ----------------------------------------------------------------------------------


def test_threads_that_wait_share_one_commit(store: LedgerStore) -> None:
    commits: list[int] = []
    event.listen(store._writers, "commit", lambda _: commits.append(1))
    outcomes: list[object] = []
    threads = [threading.Thread(target=lambda: outcomes.append(store.append(draft()))) for _ in range(20)]
    blocker = open_store(str(store._writers.url.render_as_string(hide_password=False)))
    with blocker._writers.begin() as held:
        # Somebody else holds the tail: the first thread waits for it, the others wait for the first.
        held.execute(text("UPDATE ledger_tail SET size = size"))
        for thread in threads:
            thread.start()
        waited = threading.Event()
        for _ in range(2000):
            if len(store._queue._waiting) == 19:
                break
            waited.wait(0.005)
        assert len(store._queue._waiting) == 19
    for thread in threads:
        thread.join()
    blocker.close()
    assert len(commits) == 2
    assert sorted(appended(o).index or 0 for o in outcomes) == list(range(20))
    assert check_ledger(store) == 20


def test_one_commit_takes_at_most_its_limit(store: LedgerStore) -> None:
    sizes: list[int] = []
    commit = store._queue._commit

    def counted(drafts):
        sizes.append(len(drafts))
        return commit(drafts)

    store._queue._commit = counted
    threads = [threading.Thread(target=lambda: store.append(draft())) for _ in range(limits.MAX_BATCH + 10)]
    blocker = open_store(str(store._writers.url.render_as_string(hide_password=False)))
    with blocker._writers.begin() as held:
        held.execute(text("UPDATE ledger_tail SET size = size"))
        for thread in threads:
            thread.start()
        waited = threading.Event()
        for _ in range(2000):
            if len(store._queue._waiting) == limits.MAX_BATCH + 9:
                break
            waited.wait(0.005)
    for thread in threads:
        thread.join()
    blocker.close()
    assert sizes == [1, limits.MAX_BATCH, 9]


# -- beside the log --------------------------------------------------------------------------------


def test_heads_are_kept_once_for_each_size(store: LedgerStore) -> None:
    store.keep_head(0, "empty")
    append_together(store, [draft() for _ in range(12)])
    for size, note in ((12, "twelve"), (9, "nine"), (12, "another"), (12, "twelve")):
        store.keep_head(size, note)
    other = open_store(str(store._writers.url.render_as_string(hide_password=False)))
    other.keep_head(12, "another")
    other.close()
    with store.view() as view:
        assert view.heads() == [(0, "empty"), (9, "nine"), (12, "twelve")]


def test_failed_attempts_at_a_code_are_counted(store: LedgerStore) -> None:
    code = next(row for row in sample_rows() if isinstance(row, Enrolment))
    store.append(draft(rows=(code,)))
    assert store.enrolment_failures(code.id) == 0
    assert [store.note_enrolment_failure(code.id) for _ in range(3)] == [1, 2, 3]
    assert store.enrolment_failures(code.id) == 3
    # I17: guesses at codes that do not exist leave nothing behind.
    assert store.note_enrolment_failure("ffffffffffffffff") == 0
    assert store.note_enrolment_failure("\0") == 0
    assert store.enrolment_failures("ffffffffffffffff") == 0


def test_every_row_class_is_stored_and_listed(store: LedgerStore) -> None:
    mine, others = sample_rows("a"), sample_rows("b")
    store.append(draft(rows=(*others, *mine)))
    with store.view() as view:
        for row, other in zip(mine, others, strict=True):
            assert view.list(type(row)) == [replace(row, entry=0), replace(other, entry=0)]
        grants = view.list(Grant, principal="user:b", status="active", version_id=b"b" * 16)
        assert [grant.id for grant in grants] == ["g_b"]
        assert view.list(Group, parents=("all", "a"))[0].name == "group-a"
        assert view.list(Grant, principal="\0") == []
        assert view.find(Group, "\0") is None
        with pytest.raises(InternalError):
            view.list(Grant, nothing="x")
        with pytest.raises(InternalError):
            view.find(IndexRow, 1)
        with pytest.raises(InternalError):
            view.find(Group, "a", "b")
