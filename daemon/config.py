"""The cluster's configuration: one TOML file that every process reads and a person can edit.

The file lists who belongs to the cluster and where they listen.  It is read whole and checked whole before
anything else happens: a :class:`ConfigError` names the file, the key and what is wrong with it.  Unknown keys are
errors, because a misspelt option that is silently ignored is found out much later.

Relative data directories are relative to the file's own directory, so a local cluster's directory can be moved.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from ipaddress import ip_network
from pathlib import Path
from typing import Any, Final

from wire import ids
from wire.chains import COPIES_MAX
from wire.inline import INLINE_MAX
from wire.peer import split_address

CONFIG_NAME: Final = "lockstep.toml"
"""The file's name inside a local cluster's directory."""

STRIPE_SIZE_MIN: Final = 4096
STRIPE_SIZE_MAX: Final = 8 << 20
"""One stripe unit must fit one frame's bulk data (wire.framing.BULK_MAX)."""
STRIPE_COUNT_MAX: Final = 64
CONFIG_SIZE_MAX: Final = 1 << 20
SQUASHES: Final = ("root", "all", "none")


class ConfigError(Exception):
    """The configuration cannot be used. ``str()`` is one line: file, key, reason."""

    def __init__(self, path: Path, key: str, what: str) -> None:
        super().__init__(f"{path}: {key}: {what}" if key else f"{path}: {what}")
        self.path = path
        self.key = key
        self.what = what


@dataclass(frozen=True, slots=True)
class ClusterConfig:
    """``[cluster]``: a name for people, and the id (16 bytes) that keeps two clusters apart on the wire."""

    name: str
    id: bytes


@dataclass(frozen=True, slots=True)
class StorageConfig:
    """``[storage]``: how new files are striped."""

    stripe_size: int = 1 << 20
    """Bytes per stripe unit, a multiple of 4096."""
    stripe_count: int = 4
    """Columns of a new file; fewer when there are fewer targets."""
    copies: int = 1
    """Copies of a new file's data, on different targets; fewer when there are fewer targets."""
    inline: int = 4096
    """Bytes of a new file that are kept in the metadata; one that grows larger is striped."""


@dataclass(frozen=True, slots=True)
class ReplicaConfig:
    """``[[replica]]``: one metadata replica."""

    id: int
    address: str
    data: Path
    joins: bool = False
    """Added later: it is no part of the cluster's first view, and asks the others for the state when it is new."""


@dataclass(frozen=True, slots=True)
class TargetConfig:
    """``[[target]]``: one storage target, and the number of the witness it hosts, if any."""

    id: int
    address: str
    data: Path
    witness: int | None = None


@dataclass(frozen=True, slots=True)
class ClientConfig:
    """``[client]``: what a mount does unless its own options say otherwise."""

    soft: bool = False
    """False (hard): wait for ever while no replica answers. True: ETIMEDOUT after ``timeout_ms``."""
    timeout_ms: int = 60_000


@dataclass(frozen=True, slots=True)
class ExportConfig:
    """``[[export]]``: as whom requests from a network count."""

    clients: str
    """An address, or a network as 10.1.0.0/16."""
    squash: str = "root"
    """``root``: uid 0 and gid 0 count as ``anonymous``; ``all``: everybody does; ``none``: nobody."""
    anonymous: int = 65534


@dataclass(frozen=True, slots=True)
class VoterConfig:
    """One voter of the group: a metadata replica, or a witness hosted by target ``target``."""

    id: int
    address: str
    target: int | None

    @property
    def witness(self) -> bool:
        return self.target is not None


@dataclass(frozen=True, slots=True)
class Config:
    """A whole configuration, checked."""

    path: Path
    cluster: ClusterConfig
    replicas: tuple[ReplicaConfig, ...]
    targets: tuple[TargetConfig, ...]
    storage: StorageConfig = field(default_factory=StorageConfig)
    client: ClientConfig = field(default_factory=ClientConfig)
    exports: tuple[ExportConfig, ...] = ()

    @property
    def voters(self) -> tuple[VoterConfig, ...]:
        """Every replica and witness with the address it listens at, by id."""
        found = [VoterConfig(r.id, r.address, None) for r in self.replicas]
        found += [VoterConfig(t.witness, t.address, t.id) for t in self.targets if t.witness is not None]
        return tuple(sorted(found, key=lambda v: v.id))

    def replica(self, number: int) -> ReplicaConfig:
        """Replica *number*. Raises :class:`ConfigError` when the file has none."""
        for one in self.replicas:
            if one.id == number:
                return one
        raise ConfigError(self.path, "replica", f"there is no replica {number}, only {_numbers(self.replicas)}")

    def target(self, number: int) -> TargetConfig:
        """Target *number*. Raises :class:`ConfigError` when the file has none."""
        for one in self.targets:
            if one.id == number:
                return one
        raise ConfigError(self.path, "target", f"there is no target {number}, only {_numbers(self.targets)}")


def _numbers(items: Iterable[ReplicaConfig | TargetConfig]) -> str:
    return ", ".join(str(i.id) for i in items) or "none at all"


# --- reading --------------------------------------------------------------------------------------


class _Section:
    """One table of the file: keys are taken out one by one, and what is left over at the end is an error."""

    def __init__(self, path: Path, name: str, table: Any) -> None:
        self.path = path
        self.name = name
        if not isinstance(table, dict):
            raise ConfigError(path, name, "is not a table")
        self._rest: dict[str, Any] = dict(table)

    def fail(self, key: str, what: str) -> ConfigError:
        return ConfigError(self.path, f"{self.name}.{key}" if self.name else key, what)

    def _take(self, key: str, default: Any) -> Any:
        value = self._rest.pop(key, default)
        if value is _REQUIRED:
            raise self.fail(key, "is missing")
        return value

    def text(self, key: str, default: Any) -> str:
        value = self._take(key, default)
        if not isinstance(value, str) or not value or "\0" in value:
            raise self.fail(key, f"{value!r} is not a text in quotes")
        return value

    def number(self, key: str, low: int, high: int, default: Any) -> int:
        value = self._take(key, default)
        if type(value) is not int or not low <= value <= high:  # bool is an int to isinstance()
            raise self.fail(key, f"{value!r} is not a number from {low} to {high}")
        return value

    def optional_number(self, key: str, low: int, high: int) -> int | None:
        return self.number(key, low, high, None) if key in self._rest else None

    def flag(self, key: str, default: bool) -> bool:
        value = self._take(key, default)
        if type(value) is not bool:
            raise self.fail(key, f"{value!r} is neither true nor false")
        return value

    def address(self, key: str) -> str:
        value = self.text(key, _REQUIRED)
        try:
            split_address(value)
        except ValueError as exc:
            raise self.fail(key, str(exc).removeprefix("address ")) from exc
        return value

    def directory(self, key: str) -> Path:
        # The home directory is not expanded: daemons run as users that have none.
        return Path(os.path.normpath(self.path.parent / self.text(key, _REQUIRED)))

    def section(self, key: str) -> _Section:
        return _Section(self.path, key, self._take(key, {}))

    def sections(self, key: str) -> list[_Section]:
        found = self._take(key, [])
        if not isinstance(found, list):
            raise self.fail(key, f"write [[{key}]], with two brackets, once for each")
        return [_Section(self.path, f"{key}[{k}]", table) for k, table in enumerate(found, 1)]

    def end(self) -> None:
        if self._rest:
            raise self.fail(min(self._rest), "is not a key known here")


_REQUIRED: Final = object()
_ID_TEXT: Final = re.compile(r"[0-9a-f]{32}")


def _cluster(section: _Section) -> ClusterConfig:
    name = section.text("name", _REQUIRED)
    if len(name) > 64:
        raise section.fail("name", "is longer than 64 characters")
    text = section.text("id", _REQUIRED)
    # The dashes of a UUID are allowed: that is how uuidgen prints one.
    if not _ID_TEXT.fullmatch(text.replace("-", "").lower()):
        raise section.fail("id", f"{text!r} is not 32 hexadecimal digits")
    made = ClusterConfig(name, bytes.fromhex(text.replace("-", "")))
    if not any(made.id):
        raise section.fail("id", "is all zeros; make one with uuidgen")
    section.end()
    return made


def _storage(section: _Section) -> StorageConfig:
    default = StorageConfig()
    made = StorageConfig(
        section.number("stripe_size", STRIPE_SIZE_MIN, STRIPE_SIZE_MAX, default.stripe_size),
        section.number("stripe_count", 1, STRIPE_COUNT_MAX, default.stripe_count),
        section.number("copies", 1, COPIES_MAX, default.copies),
        section.number("inline", 0, INLINE_MAX, default.inline),
    )
    if made.stripe_size % 4096:
        raise section.fail("stripe_size", f"{made.stripe_size} is not a multiple of 4096")
    section.end()
    return made


def _replica(section: _Section) -> ReplicaConfig:
    made = ReplicaConfig(
        section.number("id", 1, ids.REPLICA_ID_MAX, _REQUIRED),
        section.address("address"),
        section.directory("data"),
        section.flag("joins", False),
    )
    section.end()
    return made


def _target(section: _Section) -> TargetConfig:
    made = TargetConfig(
        section.number("id", 1, ids.TARGET_ID_MAX, _REQUIRED),
        section.address("address"),
        section.directory("data"),
        section.optional_number("witness", 1, ids.REPLICA_ID_MAX),
    )
    section.end()
    return made


def _client(section: _Section) -> ClientConfig:
    default = ClientConfig()
    made = ClientConfig(
        section.flag("soft", default.soft),
        section.number("timeout_ms", 100, 86_400_000, default.timeout_ms),
    )
    section.end()
    return made


def _export(section: _Section) -> ExportConfig:
    clients = section.text("clients", _REQUIRED)
    try:
        network = str(ip_network(clients))
    except ValueError as exc:
        raise section.fail("clients", str(exc)) from exc
    squash = section.text("squash", "root")
    if squash not in SQUASHES:
        raise section.fail("squash", f"{squash!r} is none of {', '.join(SQUASHES)}")
    made = ExportConfig(network, squash, section.number("anonymous", 1, 2**32 - 2, 65534))
    section.end()
    return made


def _refuse_twice(path: Path, items: Iterable[tuple[str, str, object]], what: Callable[[Any], str]) -> None:
    """Of *items* (who, key, value) no two may have the same value."""
    seen: dict[object, str] = {}
    for who, key, value in items:
        if value in seen:
            raise ConfigError(path, f"{who}.{key}", f"{what(value)} belongs to {seen[value]} already")
        seen[value] = who


def parse(text: str, path: Path) -> Config:
    """The configuration in *text*, which was read from *path*. Raises :class:`ConfigError`."""
    try:
        tables = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(path, "", f"not TOML: {exc}") from exc
    top = _Section(path, "", tables)
    if "cluster" not in tables:
        raise ConfigError(path, "cluster", "is missing")
    config = Config(
        path=path,
        cluster=_cluster(top.section("cluster")),
        storage=_storage(top.section("storage")),
        replicas=tuple(_replica(s) for s in top.sections("replica")),
        targets=tuple(_target(s) for s in top.sections("target")),
        client=_client(top.section("client")),
        exports=tuple(_export(s) for s in top.sections("export")),
    )
    top.end()
    if not config.replicas:
        raise ConfigError(path, "replica", "at least one [[replica]] is needed")
    _refuse_doubles(config)
    networks = ((f"export[{k}]", "clients", one.clients) for k, one in enumerate(config.exports, 1))
    _refuse_twice(path, networks, lambda v: f"network {v}")
    return config


def _refuse_doubles(config: Config) -> None:
    path = config.path
    replicas = [(f"replica[{k}]", r) for k, r in enumerate(config.replicas, 1)]
    targets = [(f"target[{k}]", t) for k, t in enumerate(config.targets, 1)]
    everyone: list[tuple[str, ReplicaConfig | TargetConfig]] = [*replicas, *targets]
    _refuse_twice(path, ((who, "id", t.id) for who, t in targets), lambda v: f"id {v}")
    # Witnesses vote beside the replicas, so both take their numbers from one space.
    voters = [(who, "id", r.id) for who, r in replicas]
    voters += [(who, "witness", t.witness) for who, t in targets if t.witness is not None]
    _refuse_twice(path, voters, lambda v: f"voter id {v}")
    _refuse_twice(path, ((who, "address", one.address) for who, one in everyone), lambda v: f"address {v}")
    # On different hosts the same directory is another one.
    places = ((who, "data", (split_address(one.address)[0], one.data)) for who, one in everyone)
    _refuse_twice(path, places, lambda v: f"directory {v[1]} on {v[0]}")


def load(path: str | os.PathLike[str]) -> Config:
    """Read and check the file at *path*. Raises :class:`ConfigError` for all that can be wrong with it."""
    where = Path(os.path.abspath(path))
    try:
        with where.open("rb") as file:
            data = file.read(CONFIG_SIZE_MAX + 1)
    except OSError as exc:
        raise ConfigError(where, "", f"cannot be read: {exc.strerror}") from exc
    if len(data) > CONFIG_SIZE_MAX:
        raise ConfigError(where, "", f"is larger than {CONFIG_SIZE_MAX} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as exc:
        raise ConfigError(where, "", f"is not UTF-8 text (byte {exc.start})") from exc
    return parse(text, where)


# --- writing --------------------------------------------------------------------------------------


def _quoted(text: str) -> str:
    """*text* as a TOML basic string."""
    parts = []
    for char in text:
        if char in '"\\':
            parts.append("\\" + char)
        elif ord(char) < 0x20 or ord(char) == 0x7F:
            parts.append(f"\\u{ord(char):04x}")
        else:
            parts.append(char)
    return '"' + "".join(parts) + '"'


def _shown(data: Path, base: Path) -> str:
    return str(data.relative_to(base)) if data.is_relative_to(base) else str(data)


def render(config: Config) -> str:
    """*config* as the commented file that :func:`parse` reads back to an equal value."""
    base = config.path.parent
    out = [
        "# Configuration of a LockstepFS cluster. Every metadata replica, storage target and client reads this file;",
        "# keep the same copy on each host. Data directories are relative to the file's own directory.",
        "",
        "[cluster]",
        f"name = {_quoted(config.cluster.name)}",
        "# Tells this cluster from any other: processes with another id are refused. Never change it.",
        f"id = {_quoted(config.cluster.id.hex())}",
        "",
        "[storage]",
        "# Bytes per stripe unit of a new file (a multiple of 4096, at most 8388608), and over how many targets it is",
        "# spread. Files that exist keep the layout they were made with.",
        f"stripe_size = {config.storage.stripe_size}",
        f"stripe_count = {config.storage.stripe_count}",
        "# Copies of a new file's data, each on another target. With two, any target may be lost. A directory may have",
        "# a layout of its own: see lockstep layout.",
        f"copies = {config.storage.copies}",
        "# Files of at most so many bytes (up to 65536) are kept in the metadata, without a storage target; 0: none.",
        f"inline = {config.storage.inline}",
        "",
        "# Metadata replicas: each holds all metadata and serves clients. id: 1 to 255, never given to another disk.",
        "# This is how the cluster began; who belongs to it now is part of its state (lockstep replica list). One that",
        "# is added later (lockstep replica add) has joins = true.",
    ]
    for replica in config.replicas:
        out += [
            "[[replica]]",
            f"id = {replica.id}",
            f"address = {_quoted(replica.address)}",
            f"data = {_quoted(_shown(replica.data, base))}",
            *(["joins = true"] if replica.joins else []),
            "",
        ]
    out += [
        "# Storage targets: each holds parts of the files' contents. A target may host a witness: a vote on which",
        "# replicas make up the service, without any metadata. Its number counts among the replicas' ids. An odd",
        "# number of voters, more than there are replicas, lets the service go on with a single replica left.",
    ]
    for target in config.targets:
        out += [
            "[[target]]",
            f"id = {target.id}",
            f"address = {_quoted(target.address)}",
            f"data = {_quoted(_shown(target.data, base))}",
        ]
        if target.witness is not None:
            out.append(f"witness = {target.witness}")
        out.append("")
    out += [
        "[client]",
        "# What a mount does while no replica answers. false: it waits until one does (hard). true: operations fail",
        "# with ETIMEDOUT after timeout_ms (soft). Mount options override both.",
        f"soft = {'true' if config.client.soft else 'false'}",
        f"timeout_ms = {config.client.timeout_ms}",
        "",
        "# As whom requests from a network count, for each network: [[export]] with clients = \"10.1.0.0/16\" and",
        "# squash = \"root\" (root there is user and group `anonymous`, 65534), \"all\" or \"none\". The narrowest",
        "# network that holds an address counts; without any, root is root. The replicas read it at their start.",
    ]
    for export in config.exports:
        out += [
            "[[export]]",
            f"clients = {_quoted(export.clients)}",
            f"squash = {_quoted(export.squash)}",
            f"anonymous = {export.anonymous}",
            "",
        ]
    return "\n".join(out)


def write(config: Config) -> None:
    """Write *config* to its path, whole or not at all: a crash leaves the old file or the new one."""
    text = render(config)
    if parse(text, config.path) != config:
        raise AssertionError("a rendered configuration does not read back as itself")
    config.path.parent.mkdir(parents=True, exist_ok=True)
    new = config.path.with_name(config.path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    new.replace(config.path)
    fd = os.open(config.path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
