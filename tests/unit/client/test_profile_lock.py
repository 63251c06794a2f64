"""The lock of a profile: waited for, but not for ever."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from broker.client import private_files
from broker.errors import ConfigurationError


def test_a_lock_is_waited_for(tmp_path: Path) -> None:
    held, go = threading.Event(), threading.Event()

    def hold() -> None:
        with private_files.locked(tmp_path / "lock"):
            held.set()
            go.wait(10)

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait(10)
    threading.Timer(0.05, go.set).start()
    with private_files.locked(tmp_path / "lock"):
        assert go.is_set()
    thread.join()


def test_a_lock_that_is_never_let_go_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(private_files, "LOCK_SECONDS", 0.02)
    with (
        private_files.locked(tmp_path / "lock"),
        pytest.raises(ConfigurationError) as caught,
        private_files.locked(tmp_path / "lock"),
    ):
        pass
    assert caught.value.next is not None
