"""S3 and what speaks like it, by botocore and, for bytes, by obstore.

A range is one GET on the condition that the ETag is still the one that was asked
for, a stat one HEAD, and a page of a listing one ListObjectsV2. All three name a
version alike: by size, ETag and whole seconds of the last change.
"""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from mesh.blocks import Attributes, DirectoryEntry
from mesh.errors import (
    MeshError,
    NotADirectory,
    NotEmpty,
    NotFound,
    Refused,
    Stale,
    UnderStoreUnavailable,
)
from mesh.metrics import Metrics
from mesh.understore.keys import Hidden, Level, why_no_path
from mesh.understore.pool import DIRECTORY, PooledStore, SlowDown, first_line, split_url
from mesh.understore.s3_client import s3_clients
from mesh.understore.s3_move import Object, S3Move
from mesh.understore.s3_upload import S3Upload
from mesh.understore.understore import PAGE_ENTRIES, UnderStoreSettings
from mesh.understore.writable import Upload, part_bytes

NO_ETAG = "mtime-"

_SLOW_DOWN = {
    "Busy",
    "RequestLimitExceeded",
    "RequestThrottled",
    "ServiceUnavailable",
    "SlowDown",
    "SlowDownRead",
    "SlowDownWrite",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
}
_STATUS_SLOW_DOWN = (429, 503)
_STATUS_GONE = (404, 412, 416)
_STATUS_UNAVAILABLE = (408, 425)
_STATUS_NOT_THAT = (409, 412)
"""Something else is there, or is just being put there."""

_KEPT_OF_OBJECTS = (
    "CacheControl",
    "ContentDisposition",
    "ContentEncoding",
    "ContentLanguage",
    "ContentType",
    "Metadata",
)
"""What an object made of parts is told to tell of itself; other copies tell it by themselves."""


class S3Store(PooledStore):
    """A bucket, or what lies under a prefix of it."""

    def __init__(self, settings: UnderStoreSettings, metrics: Metrics) -> None:
        super().__init__(settings, metrics)
        _, self._bucket, prefix = split_url(settings.url)
        self._prefix = f"{prefix}/" if prefix else ""

    async def scan(self, path: str) -> AsyncIterator[list[DirectoryEntry]]:
        if path:
            file: Attributes | None = await self._call("stat", path, self.head, path)
            if file:
                raise NotADirectory(f"{self._settings.url}: {path} is a file")
        level = Level[Attributes](self._below(path))
        seen, token = False, ""
        while True:
            answer = await self._call("scan", path, self._list, path, token)
            found = list(self._entries(answer, level))
            seen = seen or bool(answer.get("Contents") or answer.get("CommonPrefixes"))
            if found:
                yield found
            if not answer.get("IsTruncated"):
                break
            if answer.get("NextContinuationToken", token) == token:
                raise UnderStoreUnavailable(f"{self._settings.url}: scan {path}: broke off")
            token = answer["NextContinuationToken"]
        if not seen and self._below(path):
            raise NotFound(f"{self._settings.url}: no {path or 'such prefix'}")

    async def move(self, path: str, target: str, *, over: str | None) -> Attributes:
        """Copy, and then remove what was copied: not one step, see `S3Move`."""
        if path == target:
            return await self.stat(path)
        moved, _ = await self._call("move", path, self.check_moved, path, target, over)
        move = S3Move(
            self._call,
            self,
            path,
            target,
            at_once=max(1, self._settings.concurrency // 2),  # the others are for whoever reads
            has_directories=bool(self._settings.s3.endpoint),  # AWS has none
        )
        if not moved.is_directory:
            return await move.file(moved, over)
        await move.directory()
        return await self.stat(target)

    async def aclose(self) -> None:
        await super().aclose()
        if self._made is not None:
            self._made.about.close()

    def _make(self) -> Any:
        return s3_clients(self._settings)

    def _key(self, path: str) -> str:
        if reason := why_no_path(path):
            raise NotFound(f"{self._settings.url}: {path}: {reason}")
        return f"{self._prefix}{path}"

    def _any_key(self, path: str) -> str:
        """Return the key of what need not be a path: a mark, or what no listing shows."""
        return f"{self._prefix}{path}"

    def _below(self, path: str) -> str:
        """Return what all keys below *path* begin with."""
        return f"{self._key(path)}/" if path else self._prefix

    def _stat(self, path: str) -> Attributes:
        if path and (found := self.head(path)):
            return found
        answer = self._client().about.list_objects_v2(
            Bucket=self._bucket, Prefix=self._below(path), MaxKeys=1
        )
        if self._below(path) and not answer.get("Contents"):
            raise NotFound(f"{self._settings.url}: no {path or 'such prefix'}")
        return DIRECTORY

    def head(self, path: str) -> Attributes | None:
        """Describe the object at *path*; None when there is none."""
        from botocore.exceptions import ClientError

        try:
            answer = self._client().about.head_object(Bucket=self._bucket, Key=self._key(path))
        except ClientError as error:
            if _status(error) == 404:
                return None
            raise
        return _attributes(answer, answer["ContentLength"])

    def _list(self, path: str, token: str, delimiter: str = "/") -> dict[str, Any]:
        more = {"ContinuationToken": token} if token else {}
        answer: dict[str, Any] = self._client().about.list_objects_v2(
            Bucket=self._bucket,
            Prefix=self._below(path),
            Delimiter=delimiter,
            MaxKeys=PAGE_ENTRIES,
            **more,
        )
        return answer

    def _entries(
        self, answer: dict[str, Any], level: Level[Attributes]
    ) -> Iterator[DirectoryEntry]:
        objects = (
            (each["Key"], _attributes(each, each["Size"])) for each in answer.get("Contents", ())
        )
        prefixes = (each["Prefix"] for each in answer.get("CommonPrefixes", ()))
        for entry in level.entries(objects, prefixes):
            if isinstance(entry, Hidden):
                self._hide(entry.key, entry.reason)
            else:
                yield DirectoryEntry(entry.name, entry.content or DIRECTORY)

    def _read(self, path: str, about: Attributes, offset_bytes: int, size_bytes: int) -> memoryview:
        import obstore

        options: obstore.GetOptions = {"range": (offset_bytes, offset_bytes + size_bytes)}
        if about.tag and not about.tag.startswith(NO_ETAG):
            options["if_match"] = f'"{about.tag}"'
        try:
            answer = obstore.get(self._client().data, self._key(path), options=options)
            # Not every server heeds the condition, but what it sends it names.
            found = _attributes(_in_botocore_words(answer.meta), answer.meta["size"])
            if (found.size_bytes, found.tag) != (about.size_bytes, about.tag):
                raise Stale(f"{self._settings.url}: {path} was changed")
            # obstore's own memory: a copy would hold the interpreter's lock for milliseconds.
            data = memoryview(answer.bytes())
        except (obstore.exceptions.BaseError, FileNotFoundError) as error:
            if _status_in(error) in _STATUS_GONE:
                raise Stale(f"{self._settings.url}: {path} was changed or removed") from error
            raise
        if len(data) != size_bytes:
            raise UnderStoreUnavailable(f"{self._settings.url}: read {path}: ended too early")
        return data

    # Writing

    async def upload(
        self, path: str, *, size_bytes: int | None = None, mode: int | None = None
    ) -> Upload:
        self._key(path)  # says so if there can be no such path
        return S3Upload(self._call, self, path, size_bytes)

    def put(self, path: str, body: bytes, over: str | None) -> str:
        client = self._client().about
        answer = self._on_condition(
            client.put_object, path, over, Bucket=self._bucket, Key=self._key(path), Body=body
        )
        return _etag(answer)

    def begin(self, path: str) -> str:
        client = self._client().about
        answer = client.create_multipart_upload(Bucket=self._bucket, Key=self._key(path))
        return str(answer["UploadId"])

    def put_part(self, path: str, upload: str, number: int, body: bytes) -> str:
        answer = self._client().about.upload_part(
            Bucket=self._bucket,
            Key=self._key(path),
            UploadId=upload,
            PartNumber=number,
            Body=body,
        )
        tag: str = answer["ETag"]
        return tag

    def complete(self, path: str, upload: str, parts: list[str], over: str | None) -> str:
        numbered = [{"PartNumber": n, "ETag": tag} for n, tag in enumerate(parts, start=1)]
        answer = self._on_condition(
            self._client().about.complete_multipart_upload,
            path,
            over,
            Bucket=self._bucket,
            Key=self._any_key(path),
            UploadId=upload,
            MultipartUpload={"Parts": numbered},
        )
        return _etag(answer)

    def give_up(self, path: str, upload: str) -> None:
        self._client().about.abort_multipart_upload(
            Bucket=self._bucket, Key=self._any_key(path), UploadId=upload
        )

    def objects(self, path: str, token: str) -> tuple[list[Object], str]:
        answer = self._list(path, token, delimiter="")
        found = [
            (each["Key"].removeprefix(self._prefix), _attributes(each, each["Size"]))
            for each in answer.get("Contents", ())
        ]
        return found, answer.get("NextContinuationToken", "")

    def copy(self, path: str, about: Attributes, target: str, over: str | None) -> str:
        client = self._client().about
        answer = self._on_condition(
            client.copy_object,
            target,
            over,
            Bucket=self._bucket,
            Key=self._any_key(target),
            **self._source(path, about),
        )
        return _etag(answer["CopyObjectResult"])

    def mark(self, path: str) -> None:
        self._client().about.put_object(Bucket=self._bucket, Key=self._any_key(path), Body=b"")

    def begin_copy(self, path: str, target: str) -> str:
        client = self._client().about
        told = client.head_object(Bucket=self._bucket, Key=self._any_key(path))
        words = {word: told[word] for word in _KEPT_OF_OBJECTS if word in told}
        answer = client.create_multipart_upload(
            Bucket=self._bucket, Key=self._any_key(target), **words
        )
        return str(answer["UploadId"])

    def copy_part(
        self, path: str, about: Attributes, target: str, upload: str, number: int, start_bytes: int
    ) -> str:
        end_bytes = min(start_bytes + part_bytes(0, about.size_bytes), about.size_bytes)
        answer = self._on_condition(
            self._client().about.upload_part_copy,
            path,
            None,
            Bucket=self._bucket,
            Key=self._any_key(target),
            UploadId=upload,
            PartNumber=number,
            CopySourceRange=f"bytes={start_bytes}-{end_bytes - 1}",
            **self._source(path, about),
        )
        return str(answer["CopyPartResult"]["ETag"])

    def _source(self, path: str, about: Attributes) -> dict[str, Any]:
        source = {"CopySource": {"Bucket": self._bucket, "Key": self._any_key(path)}}
        if about.tag.startswith(NO_ETAG):
            return source
        return source | {"CopySourceIfMatch": f'"{about.tag}"'}

    def delete(self, path: str) -> None:
        self._client().about.delete_object(Bucket=self._bucket, Key=self._any_key(path))

    def _on_condition(
        self, call: Callable[..., dict[str, Any]], path: str, over: str | None, **words: Any
    ) -> dict[str, Any]:
        """Have the server look once more, at the moment of truth; not every server does."""
        from botocore.exceptions import ClientError

        if over is not None:
            words |= {"IfMatch": f'"{over}"'} if over else {"IfNoneMatch": "*"}
        try:
            return call(**words)
        except ClientError as error:
            if _status(error) in _STATUS_NOT_THAT:
                raise Stale(f"{self._settings.url}: {path} was changed by somebody") from error
            raise

    def _remove(self, path: str, only: str | None) -> None:
        self.check_replaced(path, only)
        if self.head(path) is None:
            raise NotFound(f"{self._settings.url}: no {path}")
        self.delete(path)

    def _make_directory(self, path: str, mode: int | None = None) -> None:
        if path:
            if self.head(path):
                raise NotADirectory(f"{self._settings.url}: {path} is a file")
            self._key(path)  # says so if there can be no such path
            self.mark(f"{path}/")

    def _remove_directory(self, path: str) -> None:
        mark = self._below(path)
        answer = self._client().about.list_objects_v2(Bucket=self._bucket, Prefix=mark, MaxKeys=2)
        keys = [each["Key"] for each in answer.get("Contents", ())]
        if not keys:
            if self.head(path):
                raise NotADirectory(f"{self._settings.url}: {path} is a file")
            raise NotFound(f"{self._settings.url}: no {path}")
        if keys != [mark]:
            raise NotEmpty(f"{self._settings.url}: {path} is not empty")
        self._client().about.delete_object(Bucket=self._bucket, Key=mark)

    def _translated(self, error: Exception, where: str) -> MeshError:
        from botocore import exceptions as theirs

        text = f"{where}: {first_line(error)}"
        if isinstance(error, theirs.ClientError):
            code = error.response.get("Error", {}).get("Code", "")
            return _answer_in_our_words(_status(error), code, text)
        if status := _status_in(error):
            code = re.search(r"<Code>(\w+)</Code>", str(error))
            return _answer_in_our_words(status, code[1] if code else "", text)
        if isinstance(error, theirs.NoCredentialsError | theirs.PartialCredentialsError):
            return Refused(text)
        if isinstance(error, theirs.ProfileNotFound | theirs.UnauthorizedSSOTokenError):
            return Refused(text)
        return super()._translated(error, where)


def _answer_in_our_words(status: int, code: str, text: str) -> MeshError:
    if status in _STATUS_SLOW_DOWN or code in _SLOW_DOWN:
        return SlowDown(text)
    if status == 404:
        return NotFound(text)
    if 400 <= status < 500 and status not in _STATUS_UNAVAILABLE:
        return Refused(text)  # not by whom we are, or not like this: no peer will fare better
    return UnderStoreUnavailable(text)


def _etag(answer: dict[str, Any]) -> str:
    return str(answer["ETag"]).strip('"')


def _status_in(error: Exception) -> int:
    """Return the status that obstore has put into the text of an error; 0 when there is none."""
    status = re.search(r"non-2xx status code: (\d{3})", str(error))
    return int(status[1]) if status else 0


def _status(error: Any) -> int:
    return int(error.response.get("ResponseMetadata", {}).get("HTTPStatusCode", 0))


def _attributes(answer: dict[str, Any], size_bytes: int) -> Attributes:
    """Describe an object from a HEAD, a GET or a line of a listing."""
    modified = answer.get("LastModified")
    # HEAD and GET tell whole seconds, and a listing must name the same version.
    mtime_ns = int(modified.timestamp()) * 10**9 if modified else 0
    tag = answer.get("ETag", "").strip('"') or f"{NO_ETAG}{mtime_ns}"
    return Attributes(is_directory=False, size_bytes=size_bytes, mtime_ns=mtime_ns, tag=tag)


def _in_botocore_words(meta: Any) -> dict[str, Any]:
    return {"LastModified": meta["last_modified"], "ETag": meta["e_tag"] or ""}
