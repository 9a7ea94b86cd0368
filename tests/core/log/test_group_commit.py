import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from atlas.core.log.group_commit import GroupCommit
from atlas.core.log.planning import Request
from atlas.core.log.records import NewRecord
from atlas.errors import LogClosedError, LogUnavailableError

REQUEST = Request((NewRecord("s", "n", b""),), {}, None, 0)


class Store:
    """Takes groups; waits for `go` before each when told to."""

    def __init__(self, *, held=False):
        self.groups = []
        self.threads = []
        self.busy = threading.Event()
        self.go = threading.Event()
        self.interrupt = False
        if not held:
            self.go.set()

    def commit(self, group):
        self.busy.set()
        assert self.go.wait(60)
        if self.interrupt:
            self.interrupt = False
            raise KeyboardInterrupt
        self.groups.append(len(group))
        self.threads.append(threading.current_thread())
        for append in group:
            append.succeed(())


def commits(store, grace=0.01):
    return GroupCommit(store.commit, grace=grace, address="test")


def queued(group_commit, count):
    """Wait until that many appends are in the queue."""
    while len(group_commit._queue) < count:
        threading.Event().wait(0.001)


def test_a_lone_waiter_commits_in_its_own_thread():
    store = Store()
    group_commit = commits(store, grace=60)
    for _ in range(10):
        group_commit.submit(REQUEST).wait()
    group_commit.close()

    assert set(store.threads) == {threading.current_thread()}
    assert store.groups == [1] * 10


def test_waiters_that_come_during_a_commit_share_the_next_one():
    store = Store(held=True)
    group_commit = commits(store, grace=60)
    with ThreadPoolExecutor(20) as pool:
        first = pool.submit(lambda: group_commit.submit(REQUEST).wait())
        assert store.busy.wait(60)
        others = [pool.submit(lambda: group_commit.submit(REQUEST).wait()) for _ in range(19)]
        queued(group_commit, 19)
        store.go.set()
        for one in [first, *others]:
            one.result(60)

    assert store.groups == [1, 19]
    group_commit.close()


def test_what_nobody_waits_for_is_committed_after_the_grace():
    store = Store()
    group_commit = commits(store, grace=0.001)
    append = group_commit.submit(REQUEST)
    while not append.done:
        threading.Event().wait(0.001)

    assert store.threads[0] is not threading.current_thread()
    group_commit.close()


def test_a_long_queue_does_not_wait_for_the_grace():
    store = Store()
    group_commit = commits(store, grace=60)
    appends = [group_commit.submit(REQUEST) for _ in range(1001)]
    while not appends[900].done:
        threading.Event().wait(0.001)

    group_commit.close()
    assert sum(store.groups) == 1001


async def test_those_who_await_are_woken_once_for_each_group():
    store = Store()
    group_commit = commits(store, grace=60)
    loop = asyncio.get_running_loop()
    woken = []
    original = loop.call_soon_threadsafe

    def count(*arguments, **more):
        woken.append(arguments)
        return original(*arguments, **more)

    async def one():
        await group_commit.submit(REQUEST)

    loop.call_soon_threadsafe = count
    await asyncio.gather(*(one() for _ in range(64)))
    loop.call_soon_threadsafe = original

    assert len(woken) == len(store.groups) <= 3
    await asyncio.to_thread(group_commit.close)


async def test_awaiting_does_not_block_the_loop():
    store = Store(held=True)
    group_commit = commits(store, grace=60)
    append = group_commit.submit(REQUEST)

    async def wait():
        return await append

    task = asyncio.create_task(wait())
    await asyncio.to_thread(store.busy.wait, 60)
    for _ in range(10):
        await asyncio.sleep(0)

    assert not task.done()
    store.go.set()
    assert await task == ()
    await asyncio.to_thread(group_commit.close)


def test_a_timeout_leaves_the_append_on_its_way():
    store = Store(held=True)
    group_commit = commits(store, grace=60)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: group_commit.submit(REQUEST).wait())
        assert store.busy.wait(60)
        second = group_commit.submit(REQUEST)
        with pytest.raises(TimeoutError):
            second.wait(timeout=0.01)
        with pytest.raises(TimeoutError):
            group_commit.flush(timeout=0.01)
        store.go.set()
        first.result(60)

    assert second.wait() == ()
    group_commit.close()


def test_an_interrupted_leader_loses_nothing():
    store = Store()
    store.interrupt = True
    group_commit = commits(store, grace=60)
    append = group_commit.submit(REQUEST)
    with pytest.raises(KeyboardInterrupt):
        append.wait()

    assert append.wait(60) == ()
    assert store.groups == [1]
    group_commit.close()


def test_an_error_nobody_foresaw_reaches_those_who_wait():
    def fail(group):
        raise ZeroDivisionError

    group_commit = GroupCommit(fail, grace=60, address="test")
    with pytest.raises(ZeroDivisionError):
        group_commit.submit(REQUEST).wait()

    group_commit.close()


def test_closing_stores_what_is_queued_and_refuses_more():
    store = Store()
    group_commit = commits(store, grace=60)
    appends = [group_commit.submit(REQUEST) for _ in range(5)]
    group_commit.close()

    assert all(append.done for append in appends)
    with pytest.raises(LogClosedError):
        group_commit.submit(REQUEST)
    assert not any(t.name == "atlas-log-test" for t in threading.enumerate())


def test_failures_nobody_waited_for_are_told_with_how_many_there_were():
    def fail(group):
        for append in group:
            append.fail(LogUnavailableError("full"))

    group_commit = GroupCommit(fail, grace=60, address="test")
    for _ in range(3):
        group_commit.submit(REQUEST)
    with pytest.raises(LogUnavailableError) as caught:
        group_commit.flush()

    assert "2 more appends" in caught.value.__notes__[0]
    group_commit.close()


def test_a_loop_that_is_gone_does_not_matter():
    store = Store(held=True)
    group_commit = commits(store, grace=60)
    loop = asyncio.new_event_loop()

    async def watch():
        group_commit.watch(append)

    append = group_commit.submit(REQUEST)
    loop.run_until_complete(watch())
    loop.close()
    store.go.set()

    assert append.wait(60) == ()
    group_commit.close()


# -- who may not wait --


def test_nobody_is_idle_where_somebody_commits_or_waits_or_a_commit_was_slow():
    store = Store(held=True)
    group_commit = commits(store, grace=60)
    assert group_commit.is_idle
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(lambda: group_commit.submit(REQUEST).wait())
        assert store.busy.wait(60)
        while_one_commits = group_commit.is_idle
        store.go.set()
        first.result(60)
    group_commit.took = 0.0
    group_commit.submit(REQUEST)
    while_one_waits = group_commit.is_idle
    group_commit.drain()
    group_commit.took = 1.0
    after_a_slow_one = group_commit.is_idle
    group_commit.close()

    assert (while_one_commits, while_one_waits, after_a_slow_one) == (False, False, False)
    assert store.groups == [1, 1]
