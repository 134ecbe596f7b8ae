"""daemon.config: what a person gets to read when the file is wrong, and that a written file reads back."""

from __future__ import annotations

from pathlib import Path

import pytest

from daemon import config as c

GOOD = """
[cluster]
name = "blue"
id = "00112233445566778899aabbccddeeff"

[[replica]]
id = 1
address = "127.0.0.1:7001"
data = "data/mds-1"

[[replica]]
id = 2
address = "[::1]:7002"
data = "/srv/mds-2"

[[target]]
id = 1
address = "127.0.0.1:7101"
data = "data/ossd-1"
witness = 3
"""


def parse(text: str) -> c.Config:
    return c.parse(text, Path("/etc/lockstep/lockstep.toml"))


def test_a_good_file_is_read_with_its_defaults() -> None:
    got = parse(GOOD)
    assert got.cluster == c.ClusterConfig("blue", bytes.fromhex("00112233445566778899aabbccddeeff"))
    assert got.storage == c.StorageConfig(1 << 20, 4)
    assert got.client == c.ClientConfig(False, 60_000)
    assert got.replicas[0].data == Path("/etc/lockstep/data/mds-1")
    assert got.replicas[1] == c.ReplicaConfig(2, "[::1]:7002", Path("/srv/mds-2"))
    assert got.target(1).witness == 3


def test_the_same_directory_on_another_host_is_another_one() -> None:
    got = parse(GOOD.replace("/srv/mds-2", "/etc/lockstep/data/mds-1"))
    assert got.replicas[0].data == got.replicas[1].data


def test_the_readmes_configuration_is_one() -> None:
    readme = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    text = readme.partition("```toml\n")[2].partition("```")[0]
    assert len(parse(text).voters) == 5


def test_voters_are_the_replicas_and_the_witnesses_by_id() -> None:
    voters = parse(GOOD).voters
    assert [(v.id, v.address, v.witness) for v in voters] == [
        (1, "127.0.0.1:7001", False),
        (2, "[::1]:7002", False),
        (3, "127.0.0.1:7101", True),
    ]


def test_a_uuid_with_dashes_is_an_id() -> None:
    text = GOOD.replace("00112233445566778899aabbccddeeff", "00112233-4455-6677-8899-AABBCCDDEEFF")
    assert parse(text) == parse(GOOD)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("[cluster]", "[cluster", "not TOML"),
        ('name = "blue"', "", "cluster.name: is missing"),
        ('name = "blue"', "name = 5", "cluster.name: 5 is not a text in quotes"),
        ("ddeeff", "ddeef", "cluster.id: '00112233445566778899aabbccddeef' is not 32 hexadecimal digits"),
        ("00112233445566778899aabbccddeeff", "0" * 32, "cluster.id: is all zeros"),
        ("[cluster]", "nonsense = 1\n[cluster]", "nonsense: is not a key known here"),
        ('name = "blue"', 'name = "blue"\ncolour = "blue"', "cluster.colour: is not a key known here"),
        ('address = "127.0.0.1:7001"', 'address = "127.0.0.1"', "replica[1].address: '127.0.0.1' is not HOST:PORT"),
        ('address = "127.0.0.1:7001"', 'address = "a:99999"', "replica[1].address: 'a:99999' is not HOST:PORT"),
        ('address = "127.0.0.1:7001"', 'address = "[::1]:7002"', "replica[2].address: address [::1]:7002 belongs to r"),
        ('"127.0.0.1:7101"', '"127.0.0.1:7001"', "target[1].address: address 127.0.0.1:7001 belongs to replica[1]"),
        ("id = 2", "id = 1", "replica[2].id: voter id 1 belongs to replica[1] already"),
        ("id = 2", "id = 256", "replica[2].id: 256 is not a number from 1 to 255"),
        ("id = 2", "id = true", "replica[2].id: True is not a number"),
        ("witness = 3", "witness = 2", "target[1].witness: voter id 2 belongs to replica[2] already"),
        ("witness = 3", "witness = 0", "target[1].witness: 0 is not a number from 1 to 255"),
        ("data/ossd-1", "data/x/../mds-1", "target[1].data: directory /etc/lockstep/data/mds-1 on 127.0.0.1"),
        ("[[target]]", "[target]", "target: write [[target]], with two brackets"),
        ("[cluster]", "[storage]\nstripe_size = 5000\n[cluster]", "storage.stripe_size: 5000 is not a multiple of 40"),
        ("[cluster]", "[storage]\nstripe_count = 0\n[cluster]", "storage.stripe_count: 0 is not a number from 1 to"),
        ("[cluster]", "[storage]\ninline = 65537\n[cluster]", "storage.inline: 65537 is not a number from 0 to 65536"),
        ("[cluster]", '[client]\nsoft = "yes"\n[cluster]', "client.soft: 'yes' is neither true nor false"),
        ("[cluster]", "client = 5\n[cluster]", "client: is not a table"),
    ],
)
def test_an_error_names_file_key_and_reason(old: str, new: str, message: str) -> None:
    assert old in GOOD
    with pytest.raises(c.ConfigError) as caught:
        parse(GOOD.replace(old, new, 1))
    assert str(caught.value).startswith("/etc/lockstep/lockstep.toml: ")
    assert message in str(caught.value)


def test_without_a_cluster_or_a_replica_there_is_no_configuration() -> None:
    with pytest.raises(c.ConfigError, match="cluster: is missing"):
        parse("")
    with pytest.raises(c.ConfigError, match="at least one"):
        parse(GOOD.partition("[[replica]]")[0])


def test_a_file_that_cannot_be_read_is_an_error_of_the_configuration(tmp_path: Path) -> None:
    with pytest.raises(c.ConfigError, match=r"none\.toml: cannot be read: No such file"):
        c.load(tmp_path / "none.toml")
    with pytest.raises(c.ConfigError, match="cannot be read: Is a directory"):
        c.load(tmp_path)
    (tmp_path / "latin.toml").write_bytes(b"# caf\xe9")
    with pytest.raises(c.ConfigError, match=r"is not UTF-8 text \(byte 5\)"):
        c.load(tmp_path / "latin.toml")
    (tmp_path / "huge.toml").write_bytes(b"#" * (c.CONFIG_SIZE_MAX + 1))
    with pytest.raises(c.ConfigError, match="larger than"):
        c.load(tmp_path / "huge.toml")


def test_a_written_file_reads_back_equal_and_moves_with_its_directory(tmp_path: Path) -> None:
    first = tmp_path / "first"
    made = c.Config(
        path=first / c.CONFIG_NAME,
        cluster=c.ClusterConfig('odd "name" \\ \t', bytes(range(16))),
        replicas=(c.ReplicaConfig(1, "127.0.0.1:7001", first / "data/mds-1"),),
        targets=(c.TargetConfig(1, "127.0.0.1:7002", Path("/srv/x"), 2),),
        storage=c.StorageConfig(65536, 2),
        client=c.ClientConfig(True, 5000),
    )
    c.write(made)
    assert c.load(made.path) == made
    assert sorted(p.name for p in first.iterdir()) == [c.CONFIG_NAME]
    moved = tmp_path / "second"
    first.rename(moved)
    assert c.load(moved / c.CONFIG_NAME).replicas[0].data == moved / "data/mds-1"


def test_asking_for_a_member_that_is_not_there_says_which_are() -> None:
    with pytest.raises(c.ConfigError, match="there is no replica 7, only 1, 2"):
        parse(GOOD).replica(7)
    with pytest.raises(c.ConfigError, match="there is no target 7, only 1"):
        parse(GOOD).target(7)


def test_exports_are_read_and_written() -> None:
    text = GOOD + '[[export]]\nclients = "10.1.0.0/16"\nsquash = "all"\n[[export]]\nclients = "::1"\nanonymous = 7\n'
    got = parse(text)
    assert got.exports == (c.ExportConfig("10.1.0.0/16", "all"), c.ExportConfig("::1/128", "root", 7))
    assert parse(c.render(got)) == got


@pytest.mark.parametrize(
    ("lines", "what"),
    [
        ('clients = "10.1.0.1/16"', "export[1].clients: 10.1.0.1/16 has host bits set"),
        ('clients = "somewhere"', "export[1].clients"),
        ('squash = "root"', "export[1].clients: is missing"),
        ('clients = "10.0.0.1"\nsquash = "some"', "'some' is none of root, all, none"),
        ('clients = "10.0.0.1"\nanonymous = 0', "export[1].anonymous"),
        ('clients = "10.0.0.1"\n[[export]]\nclients = "10.0.0.1/32"', "network 10.0.0.1/32"),
    ],
)
def test_a_bad_export_is_refused(lines: str, what: str) -> None:
    with pytest.raises(c.ConfigError) as refused:
        parse(f"{GOOD}[[export]]\n{lines}\n")
    assert what in str(refused.value)
