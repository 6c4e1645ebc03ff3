"""The threads that open connections: every job is answered once, whatever happens to the threads."""

from __future__ import annotations

import threading
from typing import Any

import pytest
from pool_support import eventually

from rtpool_sync import ConnectError
from rtpool_sync.connector import MAX_DIALING, Connectors


class Dial:
    """An attempt that waits to be told its result, or to be aborted."""

    def __init__(self, result: object) -> None:
        self.result = result
        self.go_on = threading.Event()
        self.begun = threading.Event()

    def run(self) -> object:
        self.begun.set()
        assert self.go_on.wait(10.0)
        if isinstance(self.result, BaseException):
            raise self.result
        return self.result

    def abort(self) -> None:
        self.result = ConnectError("aborted")
        self.go_on.set()


class Office:
    """Connectors, whose jobs are their own dials, and their answers in order."""

    def __init__(self) -> None:
        self.answers: list[tuple[Any, Any]] = []
        self.connectors = Connectors("test", lambda job: job, lambda *answer: self.answers.append(answer))  # type: ignore[arg-type,return-value]

    def submit(self, *jobs: Dial) -> None:
        for job in jobs:
            self.connectors.submit(job)  # type: ignore[arg-type]

    @property
    def threads(self) -> int:
        return len(self.connectors._threads)

    def end(self) -> None:
        self.connectors.stop()
        self.connectors.join(10.0)
        assert self.threads == 0


@pytest.fixture
def office() -> Any:
    office = Office()
    yield office
    office.end()


def test_several_at_once_and_no_more_than_allowed(office: Office) -> None:
    jobs = [Dial(i) for i in range(MAX_DIALING + 2)]
    office.submit(*jobs)
    for job in jobs[:MAX_DIALING]:
        assert job.begun.wait(10.0)
    assert not jobs[MAX_DIALING].begun.is_set()
    assert office.threads == MAX_DIALING
    for job in jobs:
        job.go_on.set()
    eventually(lambda: len(office.answers) == len(jobs))
    assert {result for _, result in office.answers} == set(range(len(jobs)))


def test_a_thread_that_waits_is_used_again(office: Office) -> None:
    for i in range(3):
        job = Dial(i)
        job.go_on.set()
        office.submit(job)
        eventually(lambda i=i: len(office.answers) == i + 1)
        eventually(lambda: office.connectors._waiting == 1)
    assert office.threads == 1


def test_threads_end_when_there_is_nothing_to_do(office: Office, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rtpool_sync.connector.LINGER", 0.01)
    job = Dial("done")
    job.go_on.set()
    office.submit(job)
    eventually(lambda: office.answers and office.threads == 0)


@pytest.mark.parametrize("error", [ConnectError("no"), OSError("odd"), SystemExit(), KeyboardInterrupt()])
def test_whatever_an_attempt_raises_is_its_answer(office: Office, error: BaseException) -> None:
    job = Dial(error)
    job.go_on.set()
    office.submit(job)
    eventually(lambda: office.answers)
    answer = office.answers[0][1]
    assert isinstance(answer, ConnectError)
    assert answer.__traceback__ is None
    assert str(error) in str(answer)


def test_at_the_end_what_is_under_way_is_aborted_and_what_waits_is_answered() -> None:
    office = Office()
    jobs = [Dial(i) for i in range(MAX_DIALING + 3)]
    office.submit(*jobs)
    for job in jobs[:MAX_DIALING]:
        assert job.begun.wait(10.0)
    office.end()
    assert {id(job) for job, _ in office.answers} == {id(job) for job in jobs}
    assert all(isinstance(answer, ConnectError) for _, answer in office.answers)
    assert not jobs[-1].begun.is_set()


def test_a_job_that_comes_when_the_only_thread_gives_up_and_all_is_stopped(office: Office) -> None:
    """In the same moment, all three: it must be answered even so."""
    connectors = office.connectors
    job = Dial("never")
    taken = threading.Event()
    original = connectors._jobs

    class Jobs:
        def get(self, timeout: float) -> object:
            if taken.is_set():
                return original.get(timeout=timeout)
            taken.set()
            with connectors._lock:
                connectors._unclaimed += 1
            original.put(job)  # type: ignore[arg-type]
            connectors._stopped = True
            import queue

            raise queue.Empty

        def put(self, item: object) -> None:
            original.put(item)  # type: ignore[arg-type]

    connectors._jobs = Jobs()  # type: ignore[assignment]
    thread = threading.Thread(target=connectors._run)
    connectors._threads.add(thread)
    thread.start()
    eventually(lambda: office.answers)
    assert office.answers[0][0] is job


def test_where_no_thread_can_be_started_that_is_the_answer(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    jobs = [Dial(i) for i in range(2)]
    office.submit(*jobs)
    assert [job for job, _ in office.answers] == jobs
    assert all("no thread" in str(answer) for _, answer in office.answers)
    assert (office.threads, office.connectors._unclaimed) == (0, 0)


def test_where_no_more_threads_can_be_started_those_there_are_do_it(
    office: Office, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = Dial(1), Dial(2)
    office.submit(first)
    assert first.begun.wait(10.0)

    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start)
        office.submit(second)
    assert office.answers == []
    first.go_on.set()
    second.go_on.set()
    eventually(lambda: [result for _, result in office.answers] == [1, 2])
