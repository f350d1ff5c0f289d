"""protobuf <-> dataclasses for what is asked and said about paths."""

from __future__ import annotations

from mesh.errors import MeshError
from mesh.wire import messages as m
from mesh.wire.basics import (
    Method,
    attributes_of,
    attributes_to,
    error_named,
    file_of,
    file_to,
    named,
    path_bytes,
    path_text,
)
from mesh.wire.gen import mesh_pb2 as pb


def stat_reply_to(value: m.StatReply) -> pb.StatReply:
    return pb.StatReply(
        attributes=attributes_to(value.attributes),
        file=None if value.file is None else file_to(value.file),
        is_stale=value.is_stale,
        fresh_s=value.fresh_s,
        age_s=value.age_s,
    )


def stat_reply_of(value: pb.StatReply) -> m.StatReply:
    return m.StatReply(
        attributes_of(value.attributes),
        file_of(value.file) if value.HasField("file") else None,
        value.is_stale,
        value.fresh_s,
        value.age_s,
    )


def _decode_stat_request(data: bytes) -> m.StatRequest:
    value = pb.StatRequest.FromString(data)
    return m.StatRequest(path_text(value.path), value.refresh)


def _encode_list_request(value: m.ListRequest) -> bytes:
    return pb.ListRequest(
        path=path_bytes(value.path),
        after=path_bytes(value.after),
        asker=value.asker,
        refresh=value.refresh,
        is_ahead=value.is_ahead,
        waited_s=value.waited_s,
        is_copy=value.is_copy,
    ).SerializeToString()


def _decode_list_request(data: bytes) -> m.ListRequest:
    value = pb.ListRequest.FromString(data)
    return m.ListRequest(
        path_text(value.path),
        path_text(value.after),
        value.asker,
        value.refresh,
        value.is_ahead,
        value.waited_s,
        value.is_copy,
    )


def _encode_list_reply(value: m.ListReply) -> bytes:
    return pb.ListReply(
        page=value.page,
        is_last=value.is_last,
        entry_count=value.entry_count,
        fresh_s=value.fresh_s,
        age_s=value.age_s,
        is_stale=value.is_stale,
        is_pending=value.is_pending,
    ).SerializeToString()


def _decode_list_reply(data: bytes) -> m.ListReply:
    value = pb.ListReply.FromString(data)
    return m.ListReply(
        value.page,
        value.is_last,
        value.entry_count,
        value.fresh_s,
        value.age_s,
        value.is_stale,
        value.is_pending,
    )


def _encode_lookup_request(value: m.LookupRequest) -> bytes:
    return pb.LookupRequest(
        paths=[path_bytes(path) for path in value.paths],
        asker=value.asker,
        refresh=value.refresh,
        only_known=value.only_known,
    ).SerializeToString()


def _decode_lookup_request(data: bytes) -> m.LookupRequest:
    value = pb.LookupRequest.FromString(data)
    paths = tuple(path_text(path) for path in value.paths)
    return m.LookupRequest(paths, value.asker, value.refresh, value.only_known)


def _answer_to(value: m.StatReply | MeshError | None) -> pb.LookupAnswer:
    if value is None:
        return pb.LookupAnswer()
    if isinstance(value, MeshError):
        return pb.LookupAnswer(error=named(value))
    return pb.LookupAnswer(found=stat_reply_to(value))


def _answer_of(value: pb.LookupAnswer) -> m.StatReply | MeshError | None:
    if value.error:
        return error_named("owner", value.error)
    return stat_reply_of(value.found) if value.HasField("found") else None


def _decode_lookup_reply(data: bytes) -> m.LookupReply:
    return m.LookupReply(tuple(_answer_of(a) for a in pb.LookupReply.FromString(data).answers))


def _change_to(value: m.Change) -> pb.Change:
    return pb.Change(
        source=value.source,
        path=path_bytes(value.path),
        names=[path_bytes(name) for name in value.names],
        is_all=value.is_all,
        is_listing=value.is_listing,
        is_passed_on=value.is_passed_on,
        is_tree=value.is_tree,
    )


def _change_of(value: pb.Change) -> m.Change:
    names = tuple(path_text(name) for name in value.names)
    return m.Change(
        value.source,
        path_text(value.path),
        names,
        value.is_all,
        value.is_listing,
        value.is_passed_on,
        value.is_tree,
    )


def _decode_invalidate(data: bytes) -> m.InvalidateRequest:
    changes = pb.InvalidateRequest.FromString(data).changes
    return m.InvalidateRequest(tuple(_change_of(change) for change in changes))


def kept_to(value: m.Kept) -> pb.Kept:
    about = None if value.attributes is None else attributes_to(value.attributes)
    return pb.Kept(path=path_bytes(value.path), attributes=about, age_s=value.age_s)


def kept_of(value: pb.Kept) -> m.Kept:
    about = attributes_of(value.attributes) if value.HasField("attributes") else None
    return m.Kept(path_text(value.path), about, value.age_s)


def _encode_keep(value: m.KeepRequest) -> bytes:
    kept = [kept_to(one) for one in value.kept]
    directories = [path_bytes(path) for path in value.directories]
    return pb.KeepRequest(asker=value.asker, kept=kept, directories=directories).SerializeToString()


def _decode_keep(data: bytes) -> m.KeepRequest:
    value = pb.KeepRequest.FromString(data)
    kept = tuple(kept_of(one) for one in value.kept)
    return m.KeepRequest(value.asker, kept, tuple(path_text(p) for p in value.directories))


def _decode_refresh(data: bytes) -> m.RefreshRequest:
    value = pb.RefreshRequest.FromString(data)
    return m.RefreshRequest(path_text(value.path), value.is_recursive)


def _decode_watched(data: bytes) -> m.WatchReply:
    value = pb.WatchReply.FromString(data)
    return m.WatchReply(value.last, tuple(_change_of(change) for change in value.changes))


def _decode_nothing(data: bytes) -> m.Nothing:
    return m.Nothing()


STAT: Method[m.StatRequest, m.StatReply] = Method(
    "mesh.v1.Catalog",
    "Stat",
    lambda q: pb.StatRequest(path=path_bytes(q.path), refresh=q.refresh).SerializeToString(),
    _decode_stat_request,
    lambda a: stat_reply_to(a).SerializeToString(),
    lambda data: stat_reply_of(pb.StatReply.FromString(data)),
)
LIST: Method[m.ListRequest, m.ListReply] = Method(
    "mesh.v1.Catalog",
    "Page",
    _encode_list_request,
    _decode_list_request,
    _encode_list_reply,
    _decode_list_reply,
)
LOOKUP: Method[m.LookupRequest, m.LookupReply] = Method(
    "mesh.v1.Catalog",
    "Lookup",
    _encode_lookup_request,
    _decode_lookup_request,
    lambda a: pb.LookupReply(answers=[_answer_to(one) for one in a.answers]).SerializeToString(),
    _decode_lookup_reply,
)
INVALIDATE: Method[m.InvalidateRequest, m.Nothing] = Method(
    "mesh.v1.Catalog",
    "Invalidate",
    lambda q: pb.InvalidateRequest(changes=[_change_to(c) for c in q.changes]).SerializeToString(),
    _decode_invalidate,
    lambda a: b"",
    _decode_nothing,
)
KEEP: Method[m.KeepRequest, m.Nothing] = Method(
    "mesh.v1.Catalog", "Keep", _encode_keep, _decode_keep, lambda a: b"", _decode_nothing
)
REFRESH: Method[m.RefreshRequest, m.RefreshReply] = Method(
    "mesh.v1.Catalog",
    "Refresh",
    lambda q: pb.RefreshRequest(
        path=path_bytes(q.path), is_recursive=q.is_recursive
    ).SerializeToString(),
    _decode_refresh,
    lambda a: pb.RefreshReply(looked_at=a.looked_at).SerializeToString(),
    lambda data: m.RefreshReply(pb.RefreshReply.FromString(data).looked_at),
)
WATCH: Method[m.WatchRequest, m.WatchReply] = Method(
    "mesh.v1.Local",
    "Watch",
    lambda q: pb.WatchRequest(since=q.since).SerializeToString(),
    lambda data: m.WatchRequest(pb.WatchRequest.FromString(data).since),
    lambda a: pb.WatchReply(
        last=a.last, changes=[_change_to(c) for c in a.changes]
    ).SerializeToString(),
    _decode_watched,
)
