"""What mesh.toml may say: one section for each room, and every mistake in words.

    environment  MESH_STORE__CAPACITY=20GiB    wins over
    file         [store] capacity = "20GiB"    wins over
    default      100GiB

A room gets its own section (`sections`) and cannot see the rest.

Nobody sees a traceback for a mistake in the configuration. `load_settings`
collects all of them into one `ConfigErrors`: those of single keys, and those of
keys that contradict each other as far as their sections are sound by themselves.
No secret and no text that could hold one is repeated in a mistake.
"""

from __future__ import annotations

import base64
import difflib
import json
import os
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    ModelWrapValidatorHandler,
    TypeAdapter,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from mesh.cli import quantities as q
from mesh.cli.quantities import BrokenRule, Location
from mesh.cli.sections import (
    KINDS,
    Cluster,
    FuseSection,
    LogSection,
    Mount,
    PeerSection,
    SecuritySection,
    StoreSection,
    mount_contradictions,
)

# The kernel allows 107 bytes; the rest is for names made from it, such as peer.sock.bulk.
SOCKET_BYTES_MAX = 100


@dataclass(frozen=True, slots=True)
class Mistake:
    """One thing that is wrong with the configuration."""

    where: str
    """The key, store.capacity, or the environment variable, MESH_STORE__CAPACITY."""

    value: str
    """What is written there, as TOML has it; empty when that is not to be shown."""

    rule: str
    """Why that will not do."""

    mend: str
    """What to write instead."""

    def __str__(self) -> str:
        value = f"{self.value} " if self.value else ""
        return f"{self.where}: {value}{self.rule}; {self.mend}"


class ConfigErrors(Exception):
    """The configuration cannot be used; says everything that is wrong with it."""

    def __init__(self, mistakes: Sequence[Mistake]) -> None:
        super().__init__("\n".join(str(mistake) for mistake in mistakes))
        self.mistakes = list(mistakes)


class Environment(EnvSettingsSource):
    """MESH_<SECTION>__<KEY>; a list or a table may be written as JSON."""

    def decode_complex_value(self, field_name: str, field: FieldInfo | None, value: Any) -> Any:
        """Return the list or table in *value*, else *value* itself, for the section to refuse."""
        try:
            decoded = json.loads(value)
        except (ValueError, RecursionError):
            return value
        return decoded if isinstance(decoded, dict | list) else value


class Settings(BaseSettings):
    """Everything that a person may set. Raises `ConfigErrors`, never a ValidationError."""

    model_config = SettingsConfigDict(
        env_prefix="MESH_", env_nested_delimiter="__", extra="forbid", frozen=True
    )

    cluster: Cluster
    peer: PeerSection
    store: StoreSection
    mounts: Annotated[
        dict[Annotated[str, AfterValidator(q.check_mount_path)], Mount], Field(min_length=1)
    ]
    fuse: FuseSection = Field(default_factory=FuseSection)
    security: SecuritySection = Field(default_factory=SecuritySection)
    log: LogSection = Field(default_factory=LogSection)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        *others: PydanticBaseSettingsSource,
        **more: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return Environment(settings_cls), init_settings

    @model_validator(mode="wrap")
    @classmethod
    def _say_every_mistake(cls, written: Any, validate: ModelWrapValidatorHandler[Self]) -> Self:
        """Return the settings with what one section lends another, or raise `ConfigErrors`."""
        details: list[ErrorDetails] = []
        try:
            settings = validate(written)
        except ValidationError as error:
            details = [detail for detail in error.errors() if not _is_echo(detail)]
        broken = {detail["loc"][0] for detail in details}
        sound = {
            name: TypeAdapter[Any](field.rebuild_annotation()).validate_python(
                written.get(name, {})
            )
            for name, field in cls.model_fields.items()
            if name not in broken
        }
        mistakes = [*map(_in_words, details), *_contradictions(sound)]
        if mistakes:
            raise ConfigErrors(mistakes)
        # Frozen for everybody else; only here do the sections see each other.
        object.__setattr__(settings, "peer", _completed(settings))
        return settings


def load_settings(path: Path) -> Settings:
    """Return what the environment, the file *path* and the defaults say together.

    Raises `ConfigErrors` with every mistake there is.
    """
    written = _read_toml(path)
    mistakes = [
        Mistake(q.spelled((section,))[1:], "", "unknown section", _nearest(section, Settings))
        for section in written
        if section not in Settings.model_fields
    ]
    try:
        settings = Settings(**{k: v for k, v in written.items() if k in Settings.model_fields})
    except ConfigErrors as errors:
        mistakes += errors.mistakes
    if mistakes:
        raise ConfigErrors(mistakes)
    return settings


def render_toml(settings: Settings) -> str:
    """Return *settings* as a file that says the same, but for secrets: those are stars."""
    written = settings.model_dump(mode="json")
    peer = written["peer"]
    for key in ("address", "gossip", "zone", "weight"):
        if settings.cluster.peers or not peer[key]:
            del peer[key]  # said in cluster.peers, or nowhere
    for path, mount in settings.mounts.items():
        for kind in KINDS:
            if kind != mount.kind:
                del written["mounts"][path][kind]
    return "\n\n".join("\n".join(lines) for lines in q.toml_tables(written)) + "\n"


def _completed(settings: Settings) -> PeerSection:
    """Return the peer section with the defaults that other sections give it."""
    peer = settings.peer
    own = next((p for p in settings.cluster.peers if p.name == peer.name), None)
    listen = peer.listen or (own.address if own else "")
    address = own.address if own else peer.address or listen
    defaults: dict[str, object] = {
        "listen": listen,
        "address": address,
        "gossip": _port_after(listen, address) if settings.cluster.seeds else "",
        "socket": settings.store.directory / "peer.sock",
    }
    if own:
        defaults |= {"zone": own.zone, "weight": own.weight}
    unset = {k: v for k, v in defaults.items() if k not in peer.model_fields_set}
    return peer.model_copy(update=unset)


def _port_after(listen: str, address: str) -> str:
    """Return where gossip is by default: the host that others know, the port after."""
    host = address.rpartition(":")[0]
    return f"{host}:{min(65535, int(listen.rpartition(':')[2]) + 1)}"


def _contradictions(sound: Mapping[str, Any]) -> Iterator[Mistake]:
    """Yield what is wrong between keys of the sections that are *sound* by themselves."""
    cluster: Cluster | None = sound.get("cluster")
    peer: PeerSection | None = sound.get("peer")
    store: StoreSection | None = sound.get("store")
    security: SecuritySection | None = sound.get("security")
    if cluster:
        yield from _peers_alike(cluster)
        yield from _sources(cluster)
    if cluster and peer and cluster.peers:
        yield from _listed(cluster, peer)
    elif cluster and peer:
        yield from _unlisted(cluster, peer, security)
    if peer and store:
        yield from _socket_too_long(peer, store)
    for path, mount in sound.get("mounts", {}).items():
        for at, rule, mend in mount_contradictions(mount):
            yield _mistake(("mounts", path, *at), None, rule, mend)
    if security:
        yield from _tls_missing(security)
    if cluster and security and not (security.insecure or security.key):
        yield from _in_the_clear(cluster, peer)


def _peers_alike(cluster: Cluster) -> Iterator[Mistake]:
    seen: set[tuple[str, str]] = set()
    for index, peer in enumerate(cluster.peers):
        for key, value in (("name", peer.name), ("address", peer.address)):
            if (key, value) in seen:
                rule, mend = f"is the {key} of an earlier peer", f"give every peer its own {key}"
                yield _mistake(("cluster", "peers", index, key), value, rule, mend)
            seen.add((key, value))


def _sources(cluster: Cluster) -> Iterator[Mistake]:
    """Who is in the mesh must be found out in one way."""
    given = [key for key in ("peers", "seeds", "etcd") if getattr(cluster, key)]
    if not given:
        mend = "add a [[cluster.peers]] section for each peer, or seeds to meet them by"
        yield _mistake(("cluster", "peers"), None, "missing", mend)
    for key in given[1:]:
        rule = f"set beside cluster.{given[0]}"
        yield _mistake(("cluster", key), None, rule, "keep one of the two")
    if cluster.key.get_secret_value() and not _is_key(cluster.key.get_secret_value()):
        mend = "write what `mesh keygen` prints"
        yield _mistake(("cluster", "key"), None, "is not 32 bytes in base64", mend)


def _is_key(text: str) -> bool:
    try:
        return len(base64.b64decode(text, validate=True)) == 32
    except ValueError:
        return False


def _listed(cluster: Cluster, peer: PeerSection) -> Iterator[Mistake]:
    """What cluster.peers says of this peer is not said again."""
    if peer.name not in [p.name for p in cluster.peers]:
        names = ", ".join(p.name for p in cluster.peers)
        mend = f"write one of {names}, or add this peer there"
        yield _mistake(("peer", "name"), peer.name, "is not in cluster.peers", mend)
    for key in ("address", "gossip", "zone", "weight"):
        if key in peer.model_fields_set:
            mend = "say it there, or meet the others by cluster.seeds"
            yield _mistake(("peer", key), None, "set beside cluster.peers", mend)


def _unlisted(
    cluster: Cluster, peer: PeerSection, security: SecuritySection | None
) -> Iterator[Mistake]:
    """A peer that nobody lists must say itself where it is."""
    if not (cluster.seeds or cluster.etcd):
        return
    if not peer.listen:
        mend = 'add listen = "10.0.0.5:7101", an address of this host that the others reach'
        yield _mistake(("peer", "listen"), None, "missing", mend)
        return
    key = "address" if peer.address else "listen"
    if q.is_wildcard(getattr(peer, key)):
        mend = "set peer.address to one that the others reach"
        yield _mistake(("peer", key), getattr(peer, key), "is no address to be reached at", mend)
    elif peer.gossip and q.is_wildcard(peer.gossip):
        mend = "write one that the others reach"
        yield _mistake(("peer", "gossip"), peer.gossip, "is no address to be reached at", mend)
    gossip = peer.gossip or peer.address or peer.listen
    in_the_clear = q.is_loopback(gossip) or (security is not None and security.insecure)
    if cluster.seeds and not cluster.key.get_secret_value() and not in_the_clear:
        mend = "write what `mesh keygen` prints, the same on every node"
        yield _mistake(("cluster", "key"), None, "missing beside cluster.seeds", mend)


def _socket_too_long(peer: PeerSection, store: StoreSection) -> Iterator[Mistake]:
    is_set = "socket" in peer.model_fields_set
    socket = peer.socket if is_set else store.directory / "peer.sock"
    size_bytes = len(os.fsencode(socket))
    if size_bytes > SOCKET_BYTES_MAX:
        rule = f"has {size_bytes} bytes, and a Unix socket's path at most {SOCKET_BYTES_MAX}"
        mend = "write a shorter path" if is_set else "set it, or shorten store.directory"
        yield _mistake(("peer", "socket"), str(socket), rule, mend)


def _tls_missing(security: SecuritySection) -> Iterator[Mistake]:
    files = {name: getattr(security, name) for name in ("ca", "certificate", "key")}
    for name, file in files.items():
        if any(files.values()) and not file:
            yield _mistake(("security", name), None, "missing", "set all three files, or none")


def _in_the_clear(cluster: Cluster, peer: PeerSection | None) -> Iterator[Mistake]:
    addresses: list[tuple[Location, str]] = [
        (("cluster", "peers", index, "address"), known.address)
        for index, known in enumerate(cluster.peers)
    ]
    own = [key for key in ("listen", "address") if peer and key in peer.model_fields_set]
    addresses += [(("peer", key), getattr(peer, key)) for key in own]
    beyond = [(at, address) for at, address in addresses if not q.is_loopback(address)]
    for at, address in beyond[:1]:  # one says it; a hundred peers would bury the rest
        mend = "set security.ca, certificate and key, or security.insecure = true"
        yield _mistake(at, address, "is reached from other hosts without TLS", mend)


# Mistakes in words

_EXAMPLES = {
    "address": 'address = "127.0.0.1:7101"',
    "directory": 'directory = "/var/lib/mesh"',
    "mounts": 'a [mounts."/"] section',
    "name": 'name = "one"',
    "peers": "a [[cluster.peers]] section for each peer",
    "url": 'url = "file:///data"',
}
_NO_TABLE = ("is not a table", "write its keys under a [section] of their own")
_NO_BOOLEAN = ("is neither true nor false", "write true or false, without quotes")
_WORDS = {
    "string_type": ("is not text", "write it in quotes"),
    "path_type": ("is not text", "write the path in quotes"),
    "bool_type": _NO_BOOLEAN,
    "bool_parsing": _NO_BOOLEAN,
    "model_type": _NO_TABLE,
    "dict_type": _NO_TABLE,
    "tuple_type": ("is not a list of tables", "write [[cluster.peers]] for each peer"),
}
_SECRETS = {
    "access_key",
    "account_key",
    "client_secret",
    "key",
    "sas_token",
    "secret_key",
    "session_token",
}


def _is_echo(detail: ErrorDetails) -> bool:
    """Return whether *detail* only follows from another one: a list without its broken items."""
    is_not_empty = detail["type"] == "too_short" and bool(detail["input"])
    return is_not_empty or detail["type"] == "default_factory_not_called"


def _in_words(detail: ErrorDetails) -> Mistake:
    """Return the mistake behind one error of pydantic."""
    at = tuple(part for part in detail["loc"] if part != "[key]")
    kind, context = detail["type"], detail.get("ctx", {})
    if kind == "extra_forbidden":
        return _mistake(at, None, "unknown key", _nearest(str(at[-1]), _section(at[:-1])))
    if kind in ("missing", "too_short"):
        rule = "missing" if kind == "missing" else "empty"
        key = str(at[-1])
        return _mistake(at, None, rule, f"add {_EXAMPLES.get(key, f'a [{key}] section')}")
    # Text where a table should be may be anything, a secret as well.
    value = None if _WORDS.get(kind) == _NO_TABLE else detail["input"]
    if kind == "literal_error":
        return _mistake(at, value, "is not known", f"write {context['expected']}")
    broken = context.get("error")
    if isinstance(broken, BrokenRule):
        return _mistake(at, value, broken.rule, broken.mend)
    rule, mend = _WORDS.get(kind, ("cannot be used", detail["msg"]))
    return _mistake(at, value, rule, mend)


def _mistake(at: Location, value: object, rule: str, mend: str) -> Mistake:
    is_secret = at[-1] in _SECRETS or "fsspec" in at
    return Mistake(_where(at), "" if is_secret else q.shown(value), rule, mend)


def _where(at: Location) -> str:
    """Return the name of the environment variable that set *at*, else its key."""
    found: Any = Environment(Settings)()
    for part in at:
        is_there = part in found if isinstance(found, dict) else isinstance(found, list)
        if not is_there:
            return q.spelled(at)[1:]
        found = found[part]
    names = {name.upper() for name in os.environ}
    for length in range(len(at), 0, -1):
        variable = "MESH_" + "__".join(map(str, at[:length])).upper()
        if variable in names:
            return variable + q.spelled(at[length:])
    return q.spelled(at)[1:]


def _section(at: Location) -> type[BaseModel]:
    """Return the model of the section at *at*, skipping the indexes of lists and mounts."""
    model: type[BaseModel] = Settings
    for part in at:
        field = model.model_fields.get(str(part))
        kinds = (field.annotation, *get_args(field.annotation)) if field else ()
        for kind in kinds:
            if isinstance(kind, type) and issubclass(kind, BaseModel):
                model = kind
    return model


def _nearest(key: str, section: type[BaseModel]) -> str:
    if near := difflib.get_close_matches(key, section.model_fields, n=1):
        return f"did you mean {near[0]}?"
    return f"write one of {', '.join(section.model_fields)}"


def _read_toml(path: Path) -> dict[str, Any]:
    text = ""
    try:
        text = path.read_text(encoding="utf-8")
        return tomllib.loads(text)
    except FileNotFoundError:
        rule, mend = "there is no such file", "write one, or name another one"
    except OSError as error:
        reason = (error.strerror or str(error)).lower()
        rule, mend = f"cannot be read: {reason}", "name a file that can be"
    except UnicodeDecodeError:
        rule, mend = "is not UTF-8", "save it as UTF-8"
    except (ValueError, RecursionError) as error:
        reason = str(error).replace("end of document", f"line {len(text.splitlines())}, the end")
        rule, mend = f"is not TOML: {reason}", "mend it there"
    raise ConfigErrors([Mistake(str(path), "", rule, mend)])
