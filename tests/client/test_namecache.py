"""What a mount remembers under its lease: when it may answer from it, and when it must not."""

from __future__ import annotations

import pytest

from client import namecache
from client.attributes import Attr
from client.namecache import ABSENT, KERNEL_S, NameCache
from wire import ids, ops

ROOT = ops.Cred(0, 0, ())
TOP = 1


def attr(ino: int, mode: int = 0o100644, nlink: int = 1) -> Attr:
    return Attr(ino, mode, nlink, 0, 0, 0, 0, 0, 0, 0, None, (), 0, ino)


def leased() -> NameCache:
    cache = NameCache()
    cache.renewed(1, 1e9)
    return cache


def made_directory() -> NameCache:
    """A cache whose mount has just made directory 7: nothing is in it, and that is known."""
    cache = leased()
    op = ops.Mkdir(ROOT, TOP, b"d", 0o755)
    touched = cache.begin(op)
    cache.end(op, touched, True, attr(7, 0o040755), cache.stamp)
    return cache


def test_a_new_directory_is_known_to_be_empty() -> None:
    assert made_directory().lookup(ROOT, 7, b"x", 0.0) == ABSENT


def test_what_is_no_entry_is_asked_of_the_service() -> None:
    """``ls -ai`` in a new directory; a name that is too long is ENAMETOOLONG, not ENOENT."""
    cache = made_directory()
    assert cache.lookup(ROOT, 7, b"..", 0.0) is None
    assert cache.lookup(ROOT, 7, b".", 0.0) is None
    assert cache.lookup(ROOT, 7, b"x" * 256, 0.0) is None


def test_a_file_looked_at_by_its_other_name_while_one_is_removed() -> None:
    """rm a/f and stat b/f at once, f being one file: stat is answered first, with two links."""
    for known in (True, False):
        cache = leased()
        if known:
            cache.learn(TOP, b"f", attr(9, nlink=2), cache.stamp)
        op = ops.Unlink(ROOT, TOP, b"f")
        touched = cache.begin(op)
        cache.learn(2, b"f", attr(9, nlink=2), cache.stamp)
        assert cache.getattr(9, 0.0) is None
        cache.end(op, touched, True, None, None)
        assert cache.getattr(9, 0.0) is None
        cache.learn(2, b"f", attr(9), cache.stamp)
        assert cache.lookup(ROOT, 2, b"f", 0.0) == attr(9)


def test_a_link_tells_nothing_when_another_own_request_has_ended_before_it() -> None:
    """link and a commit in the background, both answered; the commit's task runs first."""
    cache = leased()
    link, commit = ops.Link(ROOT, 9, TOP, b"g"), ops.Commit(9, 100, 0)
    one, two = cache.begin(link), cache.begin(commit)
    stamp = cache.stamp
    cache.end(commit, two, True, None, None)
    cache.end(link, one, True, attr(9, nlink=2), stamp)
    assert cache.getattr(9, 0.0) is None


def test_the_kernel_gets_no_name_that_was_called_back() -> None:
    """The parent's attributes are fetched; meanwhile the directory is renamed and looked up by its new name."""
    cache = leased()
    directory = attr(7, 0o040755)
    cache.learn_attr(attr(TOP, 0o040755), cache.stamp)
    cache.learn(TOP, b"old", directory, cache.stamp)
    assert 0 < cache.kernel_s(TOP, b"old", directory, 0.0) < KERNEL_S
    assert cache.recall((TOP, 7), (7,), 0.0) == KERNEL_S
    cache.learn_attr(attr(TOP, 0o040755), cache.stamp)
    cache.learn(TOP, b"new", directory, cache.stamp)
    assert cache.kernel_s(TOP, b"old", directory, 0.0) == 0.0


@pytest.mark.parametrize("size", [10, ids.NAME_MAX])
def test_absent_names_without_end_are_not_kept_without_end(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """`find` for one name in a million directories: no inode comes with what is learned."""
    monkeypatch.setattr(namecache, "NAMES_MAX", 1000)
    cache = leased()
    most = 0
    for parent in range(3000):
        cache.learn(parent, b"x" * size, None, cache.stamp)
        most = max(most, len(cache._names))
    assert most <= 1000 // (1 + size // namecache.LONG) + 1
    assert cache.lookup(ROOT, 2999, b"x" * size, 0.0) == ABSENT, "it goes on to learn"


def test_a_file_made_here() -> None:
    """Known at once; what the service says of it, or of its directory's times, is not learned until it is born."""
    cache = made_directory()
    before = cache.stamp
    new = attr(9)._replace(mtime_ns=50, ctime_ns=50)
    cache.made_here(7, b"f", new)
    assert cache.lookup(ROOT, 7, b"f", 0.0) == new and cache.changed_ns(7) == 50
    cache.learn(7, b"f", None, before)  # it was asked for before
    cache.learn(7, b"f", None, cache.stamp)
    cache.learn_attr(attr(7, 0o040755), cache.stamp)
    assert cache.lookup(ROOT, 7, b"f", 0.0) == new and cache.changed_ns(7) == 50
    late = cache.stamp
    cache.born(7, b"f", new._replace(layout=(1, (2,))), cache.stamp, as_told=True)
    cache.learn_attr(attr(7, 0o040755), late)  # an answer from before
    found = cache.lookup(ROOT, 7, b"f", 0.0)
    assert isinstance(found, Attr) and found.layout == (1, (2,)) and cache.changed_ns(7) == 50
    cache.learn_attr(attr(7, 0o040755), cache.stamp)
    assert cache.changed_ns(7) == 0


@pytest.mark.parametrize("what", ["no lease", "recalled", "other times", "never"])
def test_a_birth_that_tells_less(what: str) -> None:
    cache = made_directory()
    cache.made_here(7, b"f", attr(9))
    match what:
        case "no lease":
            cache.born(7, b"f", attr(9), None, as_told=True)
        case "recalled":
            stamp = cache.stamp
            cache.recall((5,), (), 0.0)
            cache.born(7, b"f", attr(9), stamp, as_told=True)
        case "other times":
            cache.born(7, b"f", attr(9)._replace(ctime_ns=9), cache.stamp, as_told=False)
            assert cache.getattr(7, 0.0) is None and cache.getattr(9, 0.0) is not None
            return
        case "never":
            cache.never_born(7, b"f", 9)
            assert cache.lookup(ROOT, 7, b"x", 0.0) is None
    assert cache.getattr(9, 0.0) is None and cache.lookup(ROOT, 7, b"f", 0.0) is None


def test_a_recall_of_what_is_unborn() -> None:
    """The name is not taken for absent, whatever the service says before it knows it."""
    cache = made_directory()
    cache.made_here(7, b"f", attr(9))
    cache.recall((7,), (), 0.0)
    cache.learn(7, b"f", None, cache.stamp)
    assert cache.lookup(ROOT, 7, b"f", 0.0) is None


def test_listing_a_directory() -> None:
    """All of its names are known then, if nothing has come between; until it is given back."""
    cache = leased()
    assert cache.begin_listing(7) and not cache.begin_listing(7)
    cache.end_listing(7, [(b"old", 8)])
    assert cache.lookup(ROOT, 7, b"new", 0.0) == ABSENT and cache.lookup(ROOT, 7, b"old", 0.0) is None
    cache.given_back(7)
    assert cache.lookup(ROOT, 7, b"new", 0.0) is None

    def unlink() -> None:
        op = ops.Unlink(ROOT, 7, b"old")
        cache.end(op, cache.begin(op), True, None, None)

    for between in (unlink, cache.clear, lambda: cache.given_back(7), lambda: cache.recall((7,), (), 0.0)):
        assert cache.begin_listing(7)
        between()
        cache.end_listing(7, [(b"old", 8)])
        assert cache.lookup(ROOT, 7, b"new", 0.0) is None
    op = ops.Unlink(ROOT, 7, b"old")
    touched = cache.begin(op)
    assert not cache.begin_listing(7), "it may be answered before or after"
    cache.end(op, touched, True, None, None)


@pytest.mark.parametrize("what", ["done", "failed", "without a lease"])
def test_a_directory_is_listed_while_the_service_makes_files_in_it(what: str) -> None:
    """They come one after the other, so there would be no moment for it; whether the listing has them is open."""
    cache = leased()
    first, second = (ops.Create(ROOT, 7, name, 0o644) for name in (b"first", b"second"))
    touched = cache.begin(first)
    assert cache.begin_listing(7)
    cache.end(first, touched, True, attr(9), cache.stamp)
    touched = cache.begin(second)
    if what == "failed":
        cache.end(second, touched, False, None, None)
    cache.end_listing(7, [(b"old", 8)])
    assert cache.is_complete(7) == (what != "failed")
    if what != "failed":
        assert cache.lookup(ROOT, 7, b"second", 0.0) is None, "it may be there or not"
        cache.end(second, touched, True, attr(10), cache.stamp if what == "done" else None)
    assert cache.is_complete(7) == (what == "done")
    if what == "done":
        for name, found in ((b"first", attr(9)), (b"second", attr(10)), (b"third", ABSENT)):
            assert cache.lookup(ROOT, 7, name, 0.0) == found


@pytest.mark.parametrize("what", ["done", "failed", "recalled", "exchange", "same file", "unknown"])
def test_names_across_a_rename(what: str) -> None:
    cache = made_directory()
    if what != "unknown":
        cache.made_here(7, b"old", attr(9))
        cache.born(7, b"old", attr(9), cache.stamp, as_told=True)
    if what in ("exchange", "same file"):
        cache.learn(7, b"new", attr(9 if what == "same file" else 10), cache.stamp)
    op = ops.Rename(ROOT, 7, b"old", 7, b"new", ops.RENAME_EXCHANGE if what == "exchange" else 0)
    touched = cache.begin(op)
    if what == "recalled":
        cache.recall((5,), (), 0.0)
    cache.end(op, touched, what != "failed", None, None)
    assert cache.lookup(ROOT, 7, b"old", 0.0) == (ABSENT if what == "done" else None)
    assert cache.lookup(ROOT, 7, b"new", 0.0) is None, "its attributes have changed"
    assert cache.is_complete(7) == (what == "done")


def test_requests_that_bar_a_directory() -> None:
    cache = leased()
    for op, barred in (
        (ops.SetAttr(ROOT, 7, ops.SET_MODE, 0o700, 0, 0, 0, 0, 0, False), {7}),
        (ops.Rmdir(ROOT, 5, b"d"), {7, 8}),
        (ops.Rename(ROOT, 5, b"a", 5, b"b", 0), {7, 8}),
        (ops.Unlink(ROOT, 7, b"a"), set()),
    ):
        touched = cache.begin(op)
        assert {ino for ino in (7, 8) if cache.is_barred(ino)} == barred
        cache.end(op, touched, True, None, None)
        assert not cache.is_barred(7) and not cache.is_barred(8)


def test_a_directory_is_not_listed_while_what_was_made_in_it_is_forgotten() -> None:
    """1. A file is made here. 2. Everything is called back. 3. The service lists the directory, before it hears of the
    file: that would be taken for all there is."""
    cache = leased()
    cache.learn_attr(attr(7, 0o040755), cache.stamp)
    assert cache.begin_listing(7)
    cache.end_listing(7, [])
    cache.made_here(7, b"x", attr(9))
    cache.recall((), (), 0.0)
    assert not cache.begin_listing(7)
    cache.born(7, b"x", attr(9), None, True)
    assert cache.begin_listing(7)
    cache.end_listing(7, [(b"x", 9)])
    assert cache.is_complete(7)
    cache.made_here(7, b"y", attr(10))
    assert not cache.begin_listing(7)  # is complete
    cache.renewed(2, 1e9)
    cache.learn(7, b"x", attr(9), cache.stamp)
    assert not cache.begin_listing(7) and cache.lookup(ROOT, 7, b"y", 0.0) is None


def test_a_directory_is_listed_while_what_was_made_in_it_is_remembered() -> None:
    cache = leased()
    cache.learn(7, b"x", None, cache.stamp)
    cache.learn_attr(attr(7, 0o040755), cache.stamp)
    cache.made_here(7, b"x", attr(9))
    assert cache.begin_listing(7)
    cache.end_listing(7, [])
    assert cache.lookup(ROOT, 7, b"x", 0.0) == attr(9) and cache.lookup(ROOT, 7, b"z", 0.0) == ABSENT
