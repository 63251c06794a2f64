"""What a Hub client is told of a repository, as JSON. Every value comes from a verified manifest.

Files are shown as large ones are on the Hub (Git LFS): their SHA-256 is what clients name and verify them
by. The ``oid`` of a file is the Git object of the LFS pointer that would stand for it.

**Source**: the parsers of huggingface_hub (``hf_api.py``: ModelInfo, DatasetInfo, RepoFile, RepoFolder,
GitRefs); the Git LFS specification (the pointer); Git's loose objects (``blob``, the size, a NUL).
"""

from __future__ import annotations

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from itertools import islice

from broker.canonical import Json
from broker.client.agent.revisions import MAIN, Repo, commit_of
from broker.client.library import Listed, VersionListed
from broker.client.versions import TrustedVersion
from broker.envelope.manifest import ManifestFile


def repo_info(repo: Repo, version: TrustedVersion, *, sizes: bool) -> Json:
    """A repository at one revision.

    Args:
        sizes: Sizes and digests of the files too, not merely their names.
    """
    manifest, time = version.manifest, version.commit.entry["time"]
    return {
        "_id": commit_of(version.digest)[:24],
        "id": repo.id,
        f"{repo.kind}Id": repo.id,
        "author": repo.collection,
        "sha": commit_of(version.digest),
        "createdAt": time,
        "lastModified": time,
        "private": True,
        "gated": False,
        "disabled": False,
        "tags": [f"{name}:{value}" for name, value in sorted(manifest.labels.items())],
        "usedStorage": manifest.total_bytes,
        "siblings": [_sibling(file, sizes=sizes) for file in manifest.files],
    }


def listed_info(listed: Listed) -> Json:
    """A repository in a list of them."""
    id = f"{listed.collection}/{listed.name}"
    return {"_id": _invented_oid(id)[:24], "id": id, "author": listed.collection, "private": True, "tags": []}


def _sibling(file: ManifestFile, *, sizes: bool) -> Json:
    if not sizes:
        return {"rfilename": file.path}
    lfs = {"sha256": file.sha256.hex(), "size": file.size, "pointerSize": len(_pointer(file))}
    return {"rfilename": file.path, "size": file.size, "blobId": _blob_oid(file), "lfs": lfs}


def refs_info(versions: Sequence[VersionListed]) -> Json:
    """The branch ``main`` and a tag for each version; ``versions`` from the oldest to the newest."""
    newest = versions[-1:]
    return {
        "branches": [_ref(MAIN, f"refs/heads/{MAIN}", item.digest) for item in newest],
        "tags": [_ref(item.name, f"refs/tags/{item.name}", item.digest) for item in versions],
        "converts": [],
        "pullRequests": [],
    }


def _ref(name: str, ref: str, digest: str) -> Json:
    return {"name": name, "ref": ref, "targetCommit": commit_of(digest)}


# -- the tree -----------------------------------------------------------------------------------------------


def tree_page(
    version: TrustedVersion, folder: str, *, recursive: bool, expand: bool, start: int, most: int
) -> tuple[list[Json], bool]:
    """What is in a folder (``""`` is the root), folders before what is in them; and whether there is more.

    Args:
        recursive: Everything below, not merely what is directly inside.
        expand: Say when each was published, too.
        start: Entries to leave out at the front.
        most: Entries of the answer at most.
    """
    found = list(islice(_walk(version, folder, recursive=recursive), start, start + most + 1))
    page = [
        _folder_entry(version, item, expand=expand)
        if isinstance(item, str)
        else file_entry(version, item, expand=expand)
        for item in found[:most]
    ]
    return page, len(found) > most


def _walk(version: TrustedVersion, folder: str, *, recursive: bool) -> Iterator[ManifestFile | str]:
    """Files, and folders as their paths. Nothing is remembered but the path before (I17).

    Paths ascend by their bytes, so what is in a folder stands together: a folder is new exactly when the
    path before was not in it.
    """
    within, before = f"{folder}/" if folder else "", ""
    for file in islice(version.manifest.files, _place_of(version, within), None):
        path = file.path
        if not path.startswith(within):
            return
        slash = path.find("/", len(within))
        inside = slash >= 0
        while slash >= 0:
            if not before.startswith(path[: slash + 1]):
                yield path[:slash]
            slash = path.find("/", slash + 1) if recursive else -1
        if recursive or not inside:
            yield file
        before = path


def path_entry(version: TrustedVersion, path: str, *, expand: bool) -> Json | None:
    """The file or folder of that path, if there is one; the root is not asked for."""
    file = find_file(version, path)
    if file is not None:
        return file_entry(version, file, expand=expand)
    return _folder_entry(version, path, expand=expand) if path and has_folder(version, path) else None


def find_file(version: TrustedVersion, path: str) -> ManifestFile | None:
    """The file of that path, if there is one. Quick: the files of a manifest ascend by their path."""
    at = _place_of(version, path)
    files = version.manifest.files
    return files[at] if at < len(files) and files[at].path == path else None


def has_folder(version: TrustedVersion, path: str) -> bool:
    """Whether some file is below that path; the root (``""``) is always there."""
    at = _place_of(version, f"{path}/")
    files = version.manifest.files
    return not path or (at < len(files) and files[at].path.startswith(f"{path}/"))


def _place_of(version: TrustedVersion, path: str) -> int:
    wanted = path.encode("utf-8", "surrogatepass")
    return bisect_left(version.manifest.files, wanted, key=lambda file: file.path.encode())


def file_entry(version: TrustedVersion, file: ManifestFile, *, expand: bool) -> Json:
    """One file of a tree."""
    lfs = {"oid": file.sha256.hex(), "size": file.size, "pointerSize": len(_pointer(file))}
    entry = {"type": "file", "path": file.path, "size": file.size, "oid": _blob_oid(file), "lfs": lfs}
    return {**entry, **_last_commit(version, expand=expand)}


def _folder_entry(version: TrustedVersion, path: str, *, expand: bool) -> Json:
    oid = _invented_oid(f"{version.digest}/{path}")
    return {"type": "directory", "path": path, "size": 0, "oid": oid, **_last_commit(version, expand=expand)}


def _last_commit(version: TrustedVersion, *, expand: bool) -> Json:
    if not expand:
        return {}
    commit = {
        "id": commit_of(version.digest),
        "title": version.manifest.version,
        "date": version.commit.entry["time"],
    }
    return {"lastCommit": commit}


# -- digests ------------------------------------------------------------------------------------------------


def etag_of(file: ManifestFile) -> str:
    """The strong entity tag of a file: its SHA-256, in quotes."""
    return f'"{file.sha256.hex()}"'


def _pointer(file: ManifestFile) -> bytes:
    lines = (
        "version https://git-lfs.github.com/spec/v1",
        f"oid sha256:{file.sha256.hex()}",
        f"size {file.size}",
    )
    return "".join(f"{line}\n" for line in lines).encode()


def _blob_oid(file: ManifestFile) -> str:
    pointer = _pointer(file)
    return hashlib.sha1(b"blob %d\0%s" % (len(pointer), pointer), usedforsecurity=False).hexdigest()


def _invented_oid(text: str) -> str:
    # There is no Git object: what clients want is 40 hex digits, the same for the same thing.
    return hashlib.sha256(text.encode()).hexdigest()[:40]
