"""I05 at the exchange: a minted scope, an issuer's name and a principal end where they end."""

from __future__ import annotations

import pytest

from broker import jose
from broker.errors import InvalidSubjectToken, ScopeExceeded
from tests.foreign import FakeIssuer, read_details
from tests.world import World


def test_I05_a_minted_artifact_is_not_its_namesakes(world: World) -> None:
    pub = world.add("pub", roles=["publisher"], groups=["acme", "acme-2"])
    for ref in ("acme/llama@v1", "acme/llama@v10", "acme/llama-2@v1", "acme-2/llama@v1"):
        world.publish(pub, ref, {"d/a": b"1", "d-2/a": b"2"})
    issuer = FakeIssuer()
    world.register(issuer, mapping=issuer.mapping(groups=["acme", "acme-2"]))
    job = world.exchange(issuer.token(world.clock.now()), details=read_details("*"))
    rank = world.mint(job, read_details("acme/llama@v1", paths=["d/*"]), key=jose.PrivateKey.generate())
    assert world.ask(rank, "acme/llama@v1", include=("d/a",)).grant.files == 1
    for ref, include in (
        ("acme/llama@v1", ("d-2/a",)),
        ("acme/llama@v10", ("d/a",)),
        ("acme/llama-2@v1", ("d/a",)),
        ("acme-2/llama@v1", ("d/a",)),
    ):
        with pytest.raises(ScopeExceeded):
            world.ask(rank, ref, include=include)
    collection = world.mint(job, read_details("acme/*"))
    with pytest.raises(ScopeExceeded):
        world.ask(collection, "acme-2/llama@v1")


def test_I05_an_issuer_is_its_whole_url(world: World) -> None:
    short, long = FakeIssuer("ci", "https://ci.example"), FakeIssuer("ci-2", "https://ci.example/2")
    world.register(short)
    for url in (long.url, "https://ci.example.evil", "https://ci.exampl", "https://CI.example"):
        with pytest.raises(InvalidSubjectToken):
            world.exchange(short.token(world.clock.now(), iss=url))
    world.register(long)
    with pytest.raises(InvalidSubjectToken):
        world.exchange(short.token(world.clock.now(), iss=long.url))
    assert world.exchange(long.token(world.clock.now())).id == "workload:ci-2/train"
