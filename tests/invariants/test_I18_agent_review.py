"""I18 for jobs: another server gets no token of a job, and no rank believes a stranger's configuration."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from broker.client.metadata import complete_profile
from broker.client.minting import check_rank_folder, rank_key
from broker.client.settings import Profile
from broker.client.workload import ActionsToken
from broker.errors import ConfigurationError, IntegrityFailure
from tests.unit.client.conftest import Stack, stack

__all__ = ["stack"]


def _bare(stack: Stack, folder: Path) -> Profile:
    log = stack.world.house.log
    return Profile(
        folder=folder,
        server=stack.url,
        principal="",
        issuer="",
        origin=log.origin,
        vkey=log.vkey,
        store_hosts=(),
        source=ActionsToken(url="https://actions.example/token", bearer="runner"),
    )


def test_I18_a_server_does_not_choose_the_audience_of_a_jobs_token(stack: Stack, tmp_path: Path) -> None:
    """The log's key is public: who copies it, and names another issuer, gets no token for that one."""
    profile = _bare(stack, tmp_path)
    with pytest.raises(IntegrityFailure, match="another issuer"):
        complete_profile(profile)
    stack.apply(issuer=stack.url)
    assert complete_profile(profile).issuer == stack.url
    known = replace(profile, issuer="https://elsewhere.example")
    assert complete_profile(known) is known, "what a config.toml pins is not asked for"


@pytest.mark.parametrize("mode", [0o777, 0o1777, 0o770, 0o702], ids=["all", "sticky", "group", "others"])
def test_I18_a_rank_gets_no_profile_where_others_write(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "ranks"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(ConfigurationError, match="others may write"):
        rank_key(folder)
    assert not list(folder.iterdir())
    folder.chmod(0o755)
    check_rank_folder(folder)
    assert rank_key(folder).jkt == rank_key(folder).jkt


def test_I18_a_rank_gets_no_profile_in_a_folder_of_somebody_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uid = tmp_path.stat().st_uid
    monkeypatch.setattr("os.geteuid", lambda: uid + 1)
    with pytest.raises(ConfigurationError, match="another user"):
        check_rank_folder(tmp_path)
