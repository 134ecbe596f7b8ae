"""The keys that capabilities are signed with."""

from __future__ import annotations

from tests.mds.harness import World
from wire.capability import KEY_BYTES, KEYS_MAX, signing_key
from wire.targetops import KeyRotate


def key(number: int) -> bytes:
    return bytes([number]) * KEY_BYTES


def test_the_next_one_waits_for_a_rotation(world: World) -> None:
    assert signing_key(world.machine.keys.keys) is None
    signed_with = []
    for number in range(5):
        assert world.internal(KeyRotate(number, key(number))) == number + 1
        signed_with.append(signing_key(world.machine.keys.keys))
    assert signed_with == [key(0), key(0), key(1), key(2), key(3)]
    assert world.machine.keys.keys == (key(4), key(3), key(2))
    assert len(world.machine.keys.keys) == KEYS_MAX


def test_two_keepers_rotate_once(world: World) -> None:
    assert world.internal(KeyRotate(0, key(1))) == 1
    assert world.internal(KeyRotate(0, key(2))) == 1
    assert world.machine.keys.keys == (key(1),)


def test_it_is_not_for_clients(world: World) -> None:
    assert world.status(KeyRotate(0, key(1))) != 0
    assert world.machine.keys.keys == ()


def test_a_restarted_replica_knows_them(world: World) -> None:
    world.internal(KeyRotate(0, key(1)))
    known = world.machine.keys
    world.flush()
    world.reopen()
    assert world.machine.keys == known and known.since_ns == world.machine.time_ns
