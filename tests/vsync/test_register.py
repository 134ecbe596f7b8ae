"""The register: one view per epoch, whoever proposes and whoever dies."""

from __future__ import annotations

from tests.vsync.builders import view
from vsync.effects import Effects
from vsync.records import AcceptedValue, Durable, Promised, RegisterState
from vsync.register import REGISTERS_KEPT, Acceptor, Proposer
from vsync.view import unpack_view_untrusted
from vsync.voter import Witness
from wire.codec import to_tuple
from wire.group import Accept, Accepted, Prepare, Promise

MINE = view(1, (1, 2), 0)
THEIRS = view(1, (2, 3), 0)
LOW, HIGH = (1, 1, 1), (1, 2, 1)


def test_a_promise_waits_for_the_disk() -> None:
    acceptor, out = Acceptor({}), Effects()
    acceptor.on_prepare(1, Prepare(1, LOW), out)
    assert out == Effects(records=[Promised(1, LOW)], after=[(1, Promise(1, LOW, ()))])


def test_a_lower_ballot_is_refused_with_the_higher_one() -> None:
    """Its proposer goes above it at its next attempt, instead of counting up to it."""
    acceptor = Acceptor({})
    acceptor.on_prepare(2, Prepare(1, HIGH), Effects())
    out = Effects()
    acceptor.on_prepare(1, Prepare(1, LOW), out)
    acceptor.on_accept(1, Accept(1, LOW, MINE), out)
    assert out == Effects(after=[(1, Promise(1, HIGH, ()))])


def test_an_equal_ballot_is_a_duplicate() -> None:
    acceptor = Acceptor({})
    acceptor.on_prepare(1, Prepare(1, LOW), Effects())
    out = Effects()
    acceptor.on_prepare(1, Prepare(1, LOW), out)
    assert out == Effects()


def test_what_was_accepted_is_told_and_survives_a_restart() -> None:
    acceptor, out = Acceptor({}), Effects()
    acceptor.on_prepare(1, Prepare(1, LOW), out)
    acceptor.on_accept(1, Accept(1, LOW, MINE), out)
    assert out.records[1] == AcceptedValue(1, LOW, MINE)
    assert out.after[1] == (1, Accepted(1, LOW))
    durable = Durable()
    for record in out.records:
        durable.apply(record)
    again, out = Acceptor(durable.registers), Effects()
    again.on_prepare(2, Prepare(1, HIGH), out)
    assert out.after == [(2, Promise(1, HIGH, (LOW, to_tuple(MINE))))]


def test_a_proposer_adopts_the_highest_accepted_value() -> None:
    """Somebody may have decided it and died. Voters 1, 2 and 3; 3 is not heard."""
    proposer, out = Proposer(1, HIGH, (1, 2, 3), MINE), Effects()
    proposer.start(out)
    assert out.send == [(v, Prepare(1, HIGH)) for v in (1, 2, 3)]
    out = Effects()
    proposer.on_promise(1, Promise(1, HIGH, ()), unpack_view_untrusted, out)
    proposer.on_promise(3, Promise(1, LOW, ()), unpack_view_untrusted, out)
    proposer.on_promise(9, Promise(1, HIGH, ()), unpack_view_untrusted, out)
    assert out == Effects(), "one promise, one to another ballot, one of no voter"
    proposer.on_promise(2, Promise(1, HIGH, (LOW, to_tuple(THEIRS))), unpack_view_untrusted, out)
    assert out.send == [(v, Accept(1, HIGH, THEIRS)) for v in (1, 2, 3)]
    proposer.on_accepted(1, Accepted(1, HIGH))
    assert proposer.decided is None
    proposer.on_accepted(1, Accepted(1, HIGH))
    assert proposer.decided is None, "one voter twice is one voter"
    proposer.on_accepted(2, Accepted(1, HIGH))
    assert proposer.decided == THEIRS


def test_old_registers_are_forgotten_and_refused() -> None:
    acceptor = Acceptor({})
    acceptor.on_prepare(1, Prepare(1, LOW), Effects())
    acceptor.on_prepare(1, Prepare(2 + REGISTERS_KEPT, LOW), Effects())
    assert list(acceptor.registers) == [2 + REGISTERS_KEPT]
    out = Effects()
    acceptor.on_prepare(1, Prepare(1, HIGH), out)
    acceptor.on_accept(1, Accept(1, HIGH, MINE), out)
    assert out == Effects()


def test_registers_of_a_long_journal_are_forgotten_at_the_start() -> None:
    """What is kept in memory is bounded when it comes from the journal, too."""
    again = Acceptor({epoch: RegisterState() for epoch in range(1, REGISTERS_KEPT + 5)})
    assert sorted(again.registers) == list(range(again.floor, REGISTERS_KEPT + 5))
    assert len(again.registers) == REGISTERS_KEPT + 1


def test_a_witness_votes_and_ignores_the_rest() -> None:
    witness = Witness(Durable(1))
    out = witness.step(1, Prepare(1, LOW))
    witness.validate()
    assert out == Effects(ticket=1, records=[Promised(1, LOW)], after=[(1, Promise(1, LOW, ()))])
    assert witness.step(1, Accepted(1, LOW)).notes
