"""What two answers tell: whether a power cut may have taken what the first one acknowledged."""

from __future__ import annotations

import pytest

from client.acks import Ack, lost, take_lost
from wire.chains import chain_of

ONE, TWO = chain_of(1, 7), chain_of(2, 7)
DISK, OTHER = bytes(16), bytes(15) + b"1"


@pytest.mark.parametrize("chain", [ONE, TWO])
def test_the_only_copy_and_the_chain_did_not_change_but_for_its_restart(chain: int) -> None:
    before = Ack(chain, 3, 7, True, (DISK, 1))
    assert lost(before, Ack(chain, 4, 7, True, (DISK, 2)))
    assert lost(before, Ack(chain, 4, 7, True, (OTHER, 1))), "another disk"
    assert not lost(before, Ack(chain, 4, 7, True, (DISK, 1))), "its process was started again"
    assert not lost(before, Ack(chain, 4, 8, True, (DISK, 2))), "another target has it, and had it"


def test_others_had_it_too() -> None:
    before, alone = Ack(TWO, 3, 7, False, (DISK, 1)), Ack(TWO, 3, 7, True, (DISK, 1))
    assert not lost(before, Ack(TWO, 4, 7, True, (DISK, 2)))
    assert not lost(alone, Ack(TWO, 6, 7, False, (DISK, 2)))


def test_another_copy_may_have_given_it_back() -> None:
    """1. Target 8 is in step at version 4. 2. A power cut at 7, that is to be synced: 5. 3. It is: 6. 4. 8 goes: 7."""
    assert not lost(Ack(TWO, 3, 7, True, (DISK, 1)), Ack(TWO, 7, 7, True, (DISK, 2)))
    assert lost(Ack(TWO, 3, 7, True, (DISK, 1)), Ack(TWO, 6, 7, True, (DISK, 2)))
    assert lost(Ack(ONE, 3, 7, True, (DISK, 1)), Ack(ONE, 9, 7, True, (DISK, 2))), "nobody else was to have it"


def test_a_loss_is_told_once() -> None:
    old, new = Ack(ONE, 3, 7, True, (DISK, 1)), Ack(ONE, 4, 7, True, (DISK, 2))
    acks = {old, new}
    assert take_lost(acks, new)
    assert acks == {new}
    assert not take_lost(acks, new)
