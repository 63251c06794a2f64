"""The S3 endpoint over a socket, asked by boto3: listings, objects, ranges, conditions and refusals."""

from __future__ import annotations

import hashlib
import http.client
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from urllib.parse import quote
from xml.etree import ElementTree as ET

import boto3
import pytest
from botocore.auth import S3SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.client import Config
from botocore.credentials import Credentials
from botocore.exceptions import ClientError
from hypothesis import given, settings
from hypothesis import strategies as st

from broker.client.agent import s3_listing as listing
from broker.client.agent.environment import S3_ACCESS_KEY
from broker.client.agent.http import Listener
from broker.client.agent.s3 import S3App
from broker.client.agent.s3_errors import S3Refusal, refuse
from broker.client.library import Library
from broker.errors import ERROR_CLASS, ApprovalNeeded, Denied, InvalidRequest, OverBudget, RateLimited
from tests.unit.client.conftest import MIB, Stack, make_tree, restored

SECRET = "the-secret-of-this-start"
NAMESPACE = "{http://s3.amazonaws.com/doc/2006-03-01/}"
BIG = hashlib.shake_128(b"s3 big").digest(3 * MIB + 77)
FILES = {
    "a-b": b"0",
    "a.b": b"3",
    "a/b/c.txt": b"one",
    "a/b é+&<.txt": "zwölf".encode(),
    "a/~%41=?x": b"two",
    "big.bin": BIG,
    "empty": b"",
    "\uffee\U0001f600": b"astral",
}
WRITES: dict[str, dict[str, Any]] = {
    "put_object": {"Key": "llama/new", "Body": b"x"},
    "delete_object": {"Key": "llama/big.bin"},
    "delete_objects": {"Delete": {"Objects": [{"Key": "llama/big.bin"}]}},
    "copy_object": {"Key": "llama/new", "CopySource": "acme/llama/big.bin"},
    "create_multipart_upload": {"Key": "llama/new"},
    "create_bucket": {},
    "delete_bucket": {},
    "put_object_acl": {"Key": "llama/big.bin", "ACL": "public-read"},
    "put_object_tagging": {"Key": "llama/big.bin", "Tagging": {"TagSet": []}},
}
UNSERVED: dict[str, dict[str, Any]] = {
    "get_object_acl": {"Key": "llama/big.bin"},
    "get_object_tagging": {"Key": "llama/big.bin"},
    "get_object_attributes": {"Key": "llama/big.bin", "ObjectAttributes": ["ETag"]},
    "get_bucket_acl": {},
    "get_bucket_versioning": {},
    "get_bucket_policy": {},
    "list_object_versions": {},
    "list_multipart_uploads": {},
}


@pytest.fixture
def stack(shared_stack: Stack, monkeypatch: pytest.MonkeyPatch) -> Iterator[Stack]:
    yield from restored(shared_stack, monkeypatch)


@pytest.fixture(scope="module", autouse=True)
def _published(shared_stack: Stack, tmp_path_factory: pytest.TempPathFactory) -> None:
    pia = shared_stack.add("s3-pia", roles=("publisher", "engineer"), groups=("acme", "other"))
    pia.publish(make_tree(tmp_path_factory.mktemp("old"), {"old.txt": b"old"}), "acme/llama@v1")
    pia.publish(make_tree(tmp_path_factory.mktemp("new"), FILES), "acme/llama@v2", extent_size=MIB)
    one = make_tree(tmp_path_factory.mktemp("one"), {"w.bin": b"w"})
    for ref in ("acme/llama-2@v1", "acme/llama.cpp@v1", "acme/zebra@z", "other/rows@2026"):
        pia.publish(one, ref)
    pia.publish(one, "acme/critical@v1", labels={"tier": "critical"})


@pytest.fixture(scope="module")
def library(shared_stack: Stack, _published: None) -> Iterator[Library]:
    found = shared_stack.add("s3-ana", groups=("acme",)).library(purpose="tests of the endpoint")
    yield found
    found.close()


@pytest.fixture(scope="module")
def listener(library: Library) -> Iterator[Listener]:
    found = Listener(S3App(library, secret=SECRET))
    found.start()
    yield found
    found.close()


def connect(listener: Listener, *, secret: str = SECRET, region: str = "us-east-1") -> Any:
    return boto3.client(
        "s3",
        endpoint_url=f"http://127.0.0.1:{listener.port}",
        aws_access_key_id=S3_ACCESS_KEY,
        aws_secret_access_key=secret,
        region_name=region,
        config=Config(signature_version="s3v4", retries={"total_max_attempts": 1}, proxies={}),
    )


@pytest.fixture
def s3(listener: Listener, stack: Stack) -> Iterator[Any]:
    found = connect(listener)
    yield found
    found.close()


def refused(call: Any, **arguments: Any) -> tuple[int, str, str]:
    """Status, code and message of a refusal."""
    with pytest.raises(ClientError) as caught:
        call(**arguments)
    answer = caught.value.response
    return (
        answer["ResponseMetadata"]["HTTPStatusCode"],
        answer["Error"]["Code"],
        answer["Error"].get("Message", ""),
    )


def keys(s3: Any, **arguments: Any) -> tuple[list[str], list[str]]:
    """Keys and common prefixes of a listing, over all of its pages."""
    found: tuple[list[str], list[str]] = ([], [])
    for page in s3.get_paginator("list_objects_v2").paginate(**arguments):
        found[0].extend(item["Key"] for item in page.get("Contents", []))
        found[1].extend(item["Prefix"] for item in page.get("CommonPrefixes", []))
    return found


# -- buckets ------------------------------------------------------------------------------------------


def test_collections_are_buckets(s3: Any) -> None:
    assert [bucket["Name"] for bucket in s3.list_buckets()["Buckets"]] == ["acme"]
    head = s3.head_bucket(Bucket="acme")
    assert head["ResponseMetadata"]["HTTPHeaders"]["x-amz-bucket-region"] == "us-east-1"
    assert s3.get_bucket_location(Bucket="acme")["LocationConstraint"] is None


def test_the_region_is_the_callers(listener: Listener, stack: Stack) -> None:
    s3 = connect(listener, region="eu-central-1")
    assert s3.get_bucket_location(Bucket="acme")["LocationConstraint"] == "eu-central-1"


@pytest.mark.parametrize("bucket", ["nothing", "other", "a.", "a..b", "-a"])
def test_buckets_that_are_not_there_or_not_visible(s3: Any, bucket: str) -> None:
    for call in (s3.list_objects_v2, s3.list_objects, s3.get_bucket_location):
        assert refused(call, Bucket=bucket)[:2] == (404, "NoSuchBucket")
    assert refused(s3.head_bucket, Bucket=bucket)[0] == 404
    assert refused(s3.list_objects_v2, Bucket=bucket, Prefix="rows/a")[:2] == (404, "NoSuchBucket")


# -- listings -----------------------------------------------------------------------------------------


def test_artifacts_are_folders_of_their_newest_version(s3: Any) -> None:
    expected = ["critical/", "llama-2/", "llama.cpp/", "llama/", "zebra/"]
    assert keys(s3, Bucket="acme", Delimiter="/") == ([], expected)
    assert keys(s3, Bucket="acme", Delimiter="/", Prefix="llama") == ([], expected[1:4])
    found, _ = keys(s3, Bucket="acme")
    assert found == sorted(found, key=str.encode)
    assert {key for key in found if key.startswith("llama/")} == {f"llama/{path}" for path in FILES}


def test_versions_are_listed_when_the_prefix_asks_for_them(s3: Any) -> None:
    assert keys(s3, Bucket="acme", Delimiter="/", Prefix="llama@") == ([], ["llama@v1/", "llama@v2/"])
    assert keys(s3, Bucket="acme", Prefix="llama@v1") == (["llama@v1/old.txt"], [])
    assert keys(s3, Bucket="acme", Prefix="llama@v") == (
        ["llama@v1/old.txt", *sorted((f"llama@v2/{path}" for path in FILES), key=str.encode)],
        [],
    )
    for prefix in (
        "nope@",
        "llama@v3",
        "llama@v3/",
        "LLAMA@",
        "llama@/",
        "nope/",
        "llama/a/x",
        "*",
        "llama@latest/",
    ):
        assert keys(s3, Bucket="acme", Prefix=prefix) == ([], [])


def test_a_version_by_its_manifest_digest(s3: Any, library: Library) -> None:
    digest = library.version("acme", "llama", "v1").digest
    assert keys(s3, Bucket="acme", Prefix=f"llama@{digest}/") == ([f"llama@{digest}/old.txt"], [])
    assert s3.get_object(Bucket="acme", Key=f"llama@{digest}/old.txt")["Body"].read() == b"old"


def test_folders_of_a_version(s3: Any) -> None:
    assert keys(s3, Bucket="acme", Prefix="llama/", Delimiter="/") == (
        [f"llama/{path}" for path in ("a-b", "a.b", "big.bin", "empty", "\uffee\U0001f600")],
        ["llama/a/"],
    )
    assert keys(s3, Bucket="acme", Prefix="llama/a/", Delimiter="/") == (
        ["llama/a/b é+&<.txt", "llama/a/~%41=?x"],
        ["llama/a/b/"],
    )


def test_an_item_of_a_listing_is_the_object(s3: Any, library: Library) -> None:
    item = s3.list_objects_v2(Bucket="acme", Prefix="llama/big")["Contents"][0]
    head = s3.head_object(Bucket="acme", Key=item["Key"])
    assert item["ETag"] == head["ETag"] == f'"{hashlib.sha256(BIG).hexdigest()}"'
    assert item["Size"] == head["ContentLength"] == len(BIG)
    assert item["StorageClass"] == "STANDARD"
    assert item["LastModified"].replace(microsecond=0) == head["LastModified"]
    time = library.version("acme", "llama").commit.entry["time"]
    assert item["LastModified"] == datetime.fromisoformat(time)


@pytest.mark.parametrize("encoding", ["", "&encoding-type=url"], ids=["plain", "url"])
@pytest.mark.parametrize("version", ["", "&list-type=2"], ids=["v1", "v2"])
def test_names_in_either_spelling(listener: Listener, stack: Stack, version: str, encoding: str) -> None:
    query = f"prefix=llama%2Fa%2F&delimiter=%C3%A9{version}{encoding}"
    status, headers, body = raw(listener, f"/acme?{query}")
    assert (status, headers["content-type"]) == (200, "application/xml")
    root = ET.fromstring(body)
    found = [
        item.text or "" for tag in ("Key", "Prefix", "Delimiter") for item in root.iter(f"{NAMESPACE}{tag}")
    ]
    plain = ["llama/a/b/c.txt", "llama/a/~%41=?x", "llama/a/", "llama/a/b é", "é"]
    assert found == ([quote(text) for text in plain] if encoding else plain)


def test_limits_of_a_page(s3: Any) -> None:
    for most in (0, 1, 999, 1000, 5000):
        page = s3.list_objects_v2(Bucket="acme", MaxKeys=most)
        assert page["MaxKeys"] == min(most, 1000)
        assert page["KeyCount"] == len(page.get("Contents", [])) <= min(most, 1000)
        assert page["IsTruncated"] == (most == 1)
    assert refused(s3.list_objects_v2, Bucket="acme", MaxKeys=-1)[:2] == (400, "InvalidArgument")
    wrong = {"Bucket": "acme", "ContinuationToken": "not one"}
    assert refused(s3.list_objects_v2, **wrong)[:2] == (400, "InvalidArgument")


ALL = sorted(
    [f"llama/{path}" for path in FILES]
    + [f"{name}/w.bin" for name in ("critical", "llama-2", "llama.cpp", "zebra")],
    key=str.encode,
)


def expected_listing(prefix: str, delimiter: str, after: str) -> list[str]:
    """Keys and common prefixes as the S3 API describes them."""
    found: list[str] = []
    for key in ALL:
        if not key.startswith(prefix):
            continue
        at = key.find(delimiter, len(prefix)) if delimiter else -1
        shown = key if at < 0 else key[: at + len(delimiter)]
        if shown not in found and key.encode() > after.encode():
            found.append(shown)
    return found


PREFIXES = st.one_of(
    st.sampled_from(
        ["", "l", "llama", "llama/", "llama-", "llama.cpp/w", "llama/a", "llama/a/", "llama/a/b", "z", "x"]
    ),
    st.sampled_from(ALL),
)


@settings(max_examples=150, deadline=None)
@given(
    prefix=PREFIXES,
    delimiter=st.sampled_from(["", "/", "a", "b", "/b", "lla", "."]),
    most=st.integers(1, 20),
    version=st.sampled_from([1, 2]),
)
def test_pages_put_together_are_the_listing(
    library: Library, prefix: str, delimiter: str, most: int, version: int
) -> None:
    after, found = b"", []
    while True:
        question = listing.Question(prefix=prefix, delimiter=delimiter, after=after, most=most)
        page = listing.list_page(library, "acme", question)
        found += [item.key for item in page.items]
        assert len(page.items) <= most
        if not page.truncated:
            break
        last = page.items[-1]
        after = (
            listing.parse_token(listing.token_of(last.place))
            if version == 2
            else listing.place_of_marker(last.key, prefix=prefix, delimiter=delimiter)
        )
    assert found == expected_listing(prefix, delimiter, "")


@settings(max_examples=60, deadline=None)
@given(prefix=PREFIXES, after=st.one_of(st.sampled_from(ALL), st.text(max_size=8)))
def test_a_listing_begins_after_any_text(library: Library, prefix: str, after: str) -> None:
    after = after.encode("utf-8", "ignore").decode()
    question = listing.Question(prefix=prefix, delimiter="", after=after.encode(), most=1000)
    assert [item.key for item in listing.list_page(library, "acme", question).items] == expected_listing(
        prefix, "", after
    )


@pytest.mark.parametrize("version", ["list_objects", "list_objects_v2"])
@pytest.mark.parametrize("delimiter", ["", "/"])
def test_boto3_walks_through_pages(s3: Any, version: str, delimiter: str) -> None:
    pages = s3.get_paginator(version).paginate(
        Bucket="acme", Delimiter=delimiter, Prefix="llama", PaginationConfig={"PageSize": 1}
    )
    found = []
    for page in pages:
        found += [item["Key"] for item in page.get("Contents", [])]
        found += [item["Prefix"] for item in page.get("CommonPrefixes", [])]
    assert found == expected_listing("llama", delimiter, "")


# -- objects ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", FILES)
@pytest.mark.parametrize("named", ["llama", "llama@v2"])
def test_every_file(s3: Any, named: str, path: str) -> None:
    key = f"{named}/{path}"
    answer = s3.get_object(Bucket="acme", Key=key)
    assert answer["Body"].read() == FILES[path]
    head = s3.head_object(Bucket="acme", Key=key)
    for each in (answer, head):
        assert each["ContentLength"] == len(FILES[path])
        assert each["ETag"] == f'"{hashlib.sha256(FILES[path]).hexdigest()}"'
        assert each["AcceptRanges"] == "bytes"
        assert each["Metadata"]["broker-version"] == "v2"
        assert each["Metadata"]["broker-manifest"].startswith("sha256:")


@pytest.mark.parametrize(
    ("value", "start", "stop"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=5-", 5, len(BIG)),
        ("bytes=-7", len(BIG) - 7, len(BIG)),
        (f"bytes=-{10**12}", 0, len(BIG)),
        (f"bytes={MIB - 1}-{MIB}", MIB - 1, MIB + 1),
        (f"bytes={len(BIG) - 1}-{10**12}", len(BIG) - 1, len(BIG)),
        (f"bytes=1-{len(BIG) - 1}", 1, len(BIG)),
    ],
)
def test_ranges(s3: Any, value: str, start: int, stop: int) -> None:
    answer = s3.get_object(Bucket="acme", Key="llama/big.bin", Range=value)
    head = s3.head_object(Bucket="acme", Key="llama/big.bin", Range=value)
    for each in (answer, head):
        assert each["ResponseMetadata"]["HTTPStatusCode"] == 206
        assert each["ContentRange"] == f"bytes {start}-{stop - 1}/{len(BIG)}"
        assert each["ContentLength"] == stop - start
    assert answer["Body"].read() == BIG[start:stop]


def test_ranges_that_a_file_does_not_have(s3: Any) -> None:
    for key, value in (("big.bin", f"bytes={len(BIG)}-"), ("big.bin", "bytes=-0"), ("empty", "bytes=0-")):
        assert refused(s3.get_object, Bucket="acme", Key=f"llama/{key}", Range=value)[:2] == (
            416,
            "InvalidRange",
        )


@pytest.mark.parametrize("value", ["bytes=5-1", "bytes=0-0,2-3", "lines=0-1", "bytes=a-b", "bytes=-"])
def test_what_is_no_range_is_the_whole(s3: Any, value: str) -> None:
    answer = s3.get_object(Bucket="acme", Key="llama/a-b", Range=value)
    assert (answer["ResponseMetadata"]["HTTPStatusCode"], answer["Body"].read()) == (200, b"0")


def test_preconditions(s3: Any) -> None:
    where = {"Bucket": "acme", "Key": "llama/a-b"}
    head = s3.head_object(**where)
    tag, time = head["ETag"], head["LastModified"]
    other, later, earlier = '"other"', time + timedelta(days=1), time - timedelta(days=1)
    for holds in (
        {"IfMatch": tag},
        {"IfMatch": "*"},
        {"IfMatch": tag.strip('"')},
        {"IfMatch": f"{other}, {tag}", "IfUnmodifiedSince": earlier},
        {"IfNoneMatch": other},
        {"IfNoneMatch": other, "IfModifiedSince": later},
        {"IfModifiedSince": earlier},
        {"IfUnmodifiedSince": time},
    ):
        assert s3.get_object(**where, **holds)["Body"].read() == b"0", holds
    for fails in ({"IfMatch": other}, {"IfUnmodifiedSince": earlier}, {"IfMatch": other, "IfNoneMatch": tag}):
        assert refused(s3.get_object, **where, **fails)[:2] == (412, "PreconditionFailed"), fails
        assert refused(s3.head_object, **where, **fails)[0] == 412, fails
    for same in ({"IfNoneMatch": tag}, {"IfNoneMatch": "*"}, {"IfModifiedSince": time}):
        assert refused(s3.get_object, **where, **same)[0] == 304, same
        assert refused(s3.head_object, **where, **same)[0] == 304, same


@pytest.mark.parametrize(
    "key",
    [
        "llama",
        "llama/",
        "llama/a",
        "llama/a/",
        "llama/nope",
        "llama//a-b",
        "llama/../llama/a-b",
        "llama/./a-b",
        "/llama/a-b",
        "llama@/a-b",
        "llama@v9/a-b",
        "llama@latest/a-b",
        "llama@v2@v2/a-b",
        "llama@sha256:00/a-b",
        "LLAMA/a-b",
        "llama*/a-b",
        "llama\n/a-b",
        "llama/a-b/",
        "llama/A-B",
        "nope/a-b",
    ],
)
def test_keys_that_are_no_file(listener: Listener, stack: Stack, key: str) -> None:
    del stack
    assert raw(listener, f"/acme/{quote(key)}")[0] == 404
    status, _, body = raw(listener, f"/acme/{quote(key)}", method="HEAD")
    assert (status, body) == (404, b"")


def test_keys_of_others_are_not_there(s3: Any) -> None:
    assert refused(s3.get_object, Bucket="other", Key="rows/w.bin")[:2] == (404, "NoSuchKey")


def test_a_file_that_needs_approval(s3: Any) -> None:
    status, code, message = refused(s3.get_object, Bucket="acme", Key="critical/w.bin")
    assert (status, code) == (403, "AccessDenied")
    assert "approv" in message
    assert s3.head_object(Bucket="acme", Key="critical/w.bin")["ContentLength"] == 1


def test_a_presigned_url(s3: Any, listener: Listener) -> None:
    url = s3.generate_presigned_url(
        "get_object", Params={"Bucket": "acme", "Key": "llama/big.bin"}, ExpiresIn=60
    )
    target = url.partition(str(listener.port))[2]
    line = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=10)
    line.request("GET", target, headers={"Range": "bytes=5-9"})
    answer = line.getresponse()
    assert (answer.status, answer.read()) == (206, BIG[5:10])
    line.request("HEAD", target)
    assert line.getresponse().status == 403
    line.close()


# -- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("operation", WRITES)
def test_nothing_is_written(s3: Any, stack: Stack, operation: str) -> None:
    before = len(stack.store.puts)
    status, code, message = refused(getattr(s3, operation), Bucket="acme", **WRITES[operation])
    assert (status, code) == (403, "AccessDenied")
    assert "read-only" in message
    assert len(stack.store.puts) == before


@pytest.mark.parametrize("operation", UNSERVED)
def test_what_is_not_served_is_said_to_be(s3: Any, operation: str) -> None:
    assert refused(getattr(s3, operation), Bucket="acme", **UNSERVED[operation])[:2] == (
        501,
        "NotImplemented",
    )


@pytest.mark.parametrize(
    "more", [{"VersionId": "1"}, {"PartNumber": 1}, {"ResponseContentType": "text/html"}], ids=str
)
def test_what_would_change_an_object_is_not_ignored(s3: Any, more: dict[str, Any]) -> None:
    where = {"Bucket": "acme", "Key": "llama/a-b"}
    assert refused(s3.get_object, **where, **more)[:2] == (501, "NotImplemented")


def test_every_error_has_an_answer() -> None:
    for code, kind in ERROR_CLASS.items():
        error = kind("what failed", why="the <reason> &", next="broker help")
        answer = refuse(error)
        assert answer.status >= 400, code
        assert isinstance(answer.body, bytes)
        assert b"<Message>what failed; the &lt;reason&gt; &amp;; broker help</Message>" in answer.body, code


@pytest.mark.parametrize(
    "error", [Denied("no"), ApprovalNeeded("no"), OverBudget("no")], ids=lambda e: e.code
)
def test_what_does_not_get_better_is_not_tried_again(error: Any) -> None:
    assert refuse(error).status == 403


def test_a_rate_says_when() -> None:
    answer = refuse(RateLimited("slowly", retry_after=7))
    assert answer.status == 503
    assert b"<Code>SlowDown</Code>" in bytes(answer.body)  # type: ignore[arg-type]
    assert ("Retry-After", "7") in answer.headers


def test_a_name_that_xml_cannot_hold_spoils_nothing() -> None:
    answer = refuse(InvalidRequest("a\x00b\ud800\uffff"))
    assert "<Message>a\ufffdb\ufffd\ufffd</Message>".encode() in bytes(answer.body)  # type: ignore[arg-type]


# -- raw ----------------------------------------------------------------------------------------------


def raw(listener: Listener, target: str, *, method: str = "GET") -> tuple[int, dict[str, str], bytes]:
    """One signed request whose path is sent exactly as given."""
    host = f"127.0.0.1:{listener.port}"
    made = AWSRequest(method=method, url=f"http://{host}{target}", headers={"Host": host})
    S3SigV4Auth(Credentials(S3_ACCESS_KEY, SECRET), "s3", "us-east-1").add_auth(made)
    line = http.client.HTTPConnection("127.0.0.1", listener.port, timeout=10)
    line.putrequest(method, target, skip_host=True, skip_accept_encoding=True)
    for name, value in made.headers.items():
        line.putheader(name, value)
    line.endheaders()
    answer = line.getresponse()
    body = answer.read()
    line.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


def test_a_path_that_is_no_text(listener: Listener, stack: Stack) -> None:
    assert raw(listener, "/acme/llama/%FF")[0] == 400
    assert raw(listener, "/acme?prefix=%FF")[0] == 400
    assert raw(listener, "/acme?encoding-type=utf")[0] == 400


def test_refusals_hold_no_secret(listener: Listener, stack: Stack) -> None:
    status, headers, body = raw(listener, "/acme/llama/nope")
    assert status == 404
    assert headers["content-type"] == "application/xml"
    assert SECRET.encode() not in body


def test_refusals_are_told_apart() -> None:
    refusal = S3Refusal("what", status=416, s3_code="InvalidRange", headers=[("Content-Range", "bytes */5")])
    assert ("Content-Range", "bytes */5") in refuse(refusal).headers
    assert replace(refuse(refusal), body=b"").status == 416
