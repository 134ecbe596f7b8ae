"""Three mounts that work in the same directories, each making files ahead of the order where it may, against a model.

One operation after the other, whichever mount it is asked of; births, recalls and what is given back come in between as
they may, and replies are lost. Directories are asked for at the first file, and again whenever they are called back.
"""

from __future__ import annotations

import os
import random
from collections import Counter
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import trio

from client import limits
from client.api import File
from tests.client.one_replica import one_replica
from tests.client.test_births import Mount, mount
from wire.delegation import CreateDelegated

STEPS = 400


@pytest.mark.parametrize("seed", range(2))
async def test_three_mounts_and_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int) -> None:
    rng = random.Random(seed)
    monkeypatch.setattr(limits, "BURST_CREATES", 1)
    monkeypatch.setattr(limits, "REFUSED_FIRST_S", 0.0)
    monkeypatch.setattr(limits, "REFUSED_MAX_S", 0.0)
    model: dict[str, bytes] = {}
    """Path -> contents."""
    times: dict[str, int] = {}
    """Directory -> its mtime, as somebody has seen it."""
    done: Counter[str] = Counter()
    async with one_replica(tmp_path, 0) as cluster, AsyncExitStack() as stack:
        mounts: list[Mount] = [await stack.enter_async_context(mount(cluster)) for _ in range(3)]
        for d in ("/a", "/b"):
            await rng.choice(mounts).mkdir(d)
        opened: list[File] = []
        fs = mounts[0]
        for _ in range(STEPS):
            if rng.random() < 0.1:
                fs = rng.choice(mounts)
            there = sorted(model)
            path = rng.choice(there) if there and rng.random() < 0.6 else f"/{rng.choice('ab')}/f{rng.randrange(30)}"
            directory = path[:2]
            what = rng.choice(
                ["create"] * 4 + ["list", "stat", "stat", "read", "unlink", "rename", "link", "truncate", "directory",
                 "close", "append", "lose", "exist", "chmod", "pause"]
            )  # fmt: skip
            if path not in model and what in ("read", "unlink", "truncate", "append", "link", "chmod", "rename"):
                with pytest.raises(FileNotFoundError):
                    await fs.stat(path)
                continue
            done[what] += 1
            match what:
                case "create":
                    if path in model:
                        with pytest.raises(FileExistsError):
                            await fs.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR)
                        continue
                    for _ in range(rng.randrange(1, 6)):
                        assert not await fs.exists(path)  # a kernel looks first
                        file = await fs.create(path)
                        data = rng.randbytes(rng.randrange(3) * 40)
                        await file.write(data, 0)
                        model[path] = data
                        # As close(2) by the kernel: at once where that is possible.
                        if not fs.volume.flush_nothing(file._handle):
                            await file.flush()
                        if rng.random() < 0.2:
                            opened.append(file)
                        elif not fs.volume.close_nothing(file._handle):
                            await file.close()
                        path = next(p for k in range(len(model) + 1) if (p := f"{directory}/f{k}") not in model)
                case "close":
                    if opened:
                        await opened.pop(rng.randrange(len(opened))).close()
                case "list":
                    assert sorted(await fs.listdir(directory)) == sorted(
                        p[3:].encode() for p in model if p.startswith(directory)
                    )
                case "stat":
                    if path in model:
                        assert (await fs.stat(path)).size == len(model[path])
                    else:
                        with pytest.raises(FileNotFoundError):
                            await fs.stat(path)
                case "exist":
                    assert await fs.exists(path) == (path in model)
                case "read":
                    assert await fs.read_file(path) == model[path]
                case "unlink":
                    await fs.unlink(path)
                    del model[path]
                case "rename":
                    new = f"/{rng.choice('ab')}/f{rng.randrange(30)}"
                    same = new in model and (await fs.stat(path)).ino == (await fs.stat(new)).ino
                    await fs.rename(path, new)
                    if not same:
                        model[new] = model.pop(path)
                case "link":
                    new = f"/{rng.choice('ab')}/f{rng.randrange(30)}"
                    if new not in model:
                        await fs.link(path, new)
                        # Two names of one file: gone again, so that the model need not know.
                        assert (await rng.choice(mounts).stat(path)).nlink == 2
                        await rng.choice(mounts).unlink(new)
                case "truncate":
                    async with await fs.open(path, os.O_RDWR) as file:
                        await file.truncate(10)
                    model[path] = model[path][:10].ljust(10, b"\0")
                case "append":
                    async with await fs.open(path, os.O_WRONLY | os.O_APPEND) as file:
                        await file.write(b"more")
                    model[path] += b"more"
                case "chmod":
                    await fs.chmod(path, 0o600)
                    assert (await rng.choice(mounts).stat(path)).mode & 0o7777 == 0o600
                case "directory":
                    mtime = (await fs.stat(directory)).mtime_ns
                    assert mtime >= times.get(directory, 0)
                    times[directory] = mtime
                case "lose":
                    cluster.replica.faults.lose_replies = 1
                case "pause":
                    await trio.sleep(rng.random() * 0.02)
            for one in mounts:
                one.births.delegations.validate()
                one.births._unborn.validate()
        for file in opened:
            await file.close()
        for fs in mounts:
            for path, data in model.items():
                assert await fs.read_file(path) == data
        kinds = Counter(type(op) for op in cluster.replica.requests)
        assert kinds[CreateDelegated] > 20, kinds
        assert not [ino for one in mounts for ino in one.volume.service.core.handles]
