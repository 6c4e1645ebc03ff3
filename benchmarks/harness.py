"""What all rows share: rows and goals, interleaved rounds, contestants in processes of their own."""

from __future__ import annotations

import gc
import json
import os
import resource
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

__all__ = [
    "OURS",
    "Bench",
    "Goal",
    "Ratio",
    "Row",
    "Worker",
    "cpu_seconds",
    "interleave",
    "no_gc",
    "worker_main",
]

OURS = "rtpool"
HERE = Path(__file__).parent

#: Workers and servers share this core: messages between two cores of a virtual
#: machine cost hundreds of microseconds, which would drown what is measured.
CORE = max(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None


@dataclass
class Ratio:
    """The median over the rounds, and the lowest and highest."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Ratio:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{figure(self.median)} ({figure(self.low)} to {figure(self.high)})"


@dataclass
class Goal:
    """What a row is to reach against one contestant, or by itself if ``against`` is empty.

    Attributes:
        at_most: Limit of ours divided by theirs.
        at_least: Limit of theirs divided by ours (of ours by theirs where more is better).
        less_by: Limit of theirs less ours: at least that much.
        more_by: Limit of ours less theirs: at most that much.
    """

    against: str = ""
    at_most: float | None = None
    at_least: float | None = None
    less_by: float | None = None
    more_by: float | None = None

    @property
    def is_difference(self) -> bool:
        return self.less_by is not None or self.more_by is not None

    def __str__(self) -> str:
        if self.more_by is not None:
            return f"at most {figure(self.more_by)} more"
        if self.less_by is not None:
            return f"at least {figure(self.less_by)} less"
        word, limit = ("at most", self.at_most) if self.at_least is None else ("at least", self.at_least)
        assert limit is not None
        return f"{word} {figure(limit)}{'x' if self.against else ''}"


@dataclass
class Row:
    """One thing measured.

    Attributes:
        samples: Contestant → one figure per round.
        floors: Contestants that do less than the job: what nobody can beat.
    """

    group: str
    name: str
    unit: str
    samples: dict[str, list[float]]
    goals: list[Goal] = field(default_factory=list)
    more_is_better: bool = False
    floors: list[str] = field(default_factory=list)
    note: str = ""

    def ratio(self, name: str, *, faster: bool = False) -> Ratio:
        """Ours divided by theirs, round by round; ``faster``: how many times better ours is."""
        pairs = zip(self.samples[OURS], self.samples[name], strict=True)
        flip = faster and not self.more_is_better
        return Ratio.of([_divide(b, a) if flip else _divide(a, b) for a, b in pairs])

    def multiple(self, name: str) -> str:
        """Theirs as a multiple of ours; if ours is nothing, as it is."""
        if not any(self.samples[OURS]):
            return figure(statistics.median(self.samples[name]))
        return f"{figure(self.times(name))}x"

    def times(self, name: str) -> float:
        pairs = zip(self.samples[name], self.samples[OURS], strict=True)
        return statistics.median(_divide(theirs, ours) for theirs, ours in pairs)

    def judged(self) -> Iterator[tuple[Goal, Ratio, bool]]:
        """Each goal whose contestant is there, what was reached, and whether that is enough."""
        for goal in self.goals:
            if goal.against and goal.against not in self.samples:
                continue
            if goal.is_difference:
                pairs = zip(self.samples[goal.against], self.samples[OURS], strict=True)
                sign = 1 if goal.more_by is None else -1
                reached = Ratio.of([sign * (theirs - ours) for theirs, ours in pairs])
            elif goal.against:
                reached = self.ratio(goal.against, faster=goal.at_least is not None)
            else:
                reached = Ratio.of(self.samples[OURS])
            most = goal.at_most if goal.more_by is None else goal.more_by
            if most is not None:
                yield goal, reached, reached.median <= most
            else:
                limit = goal.less_by if goal.at_least is None else goal.at_least
                assert limit is not None
                yield goal, reached, reached.median >= limit

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Row:
        return cls(**{**data, "goals": [Goal(**goal) for goal in data["goals"]]})


def _divide(a: float, b: float) -> float:
    """``a / b``; nothing against nothing is 1, and what was too little to be seen counts as very little."""
    if a == b:
        return 1.0
    return a / max(b, 1e-9)


def figure(value: float) -> str:
    """Three digits, no more: the fourth is noise."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}".replace(",", " ")
    return f"{value:.3g}"


@dataclass
class Bench:
    """How to measure, and what came of it.

    Attributes:
        rounds: How often each contestant is measured, taking turns.
        budget: Seconds one measurement of a loop takes, about.
        say: Told what is being done.
    """

    quick: bool = False
    rounds: int = 5
    budget: float = 0.2
    say: Callable[[str], None] = print
    rows: list[Row] = field(default_factory=list)
    missing: set[str] = field(default_factory=set)

    def add(self, row: Row) -> None:
        self.rows.append(row)
        if OURS in row.samples:
            ours = figure(statistics.median(row.samples[OURS]))
            rest = ", ".join(f"{name} {row.multiple(name)}" for name in row.samples if name != OURS)
            self.say(f"  {row.name}: {ours} {row.unit}; {rest}")

    def contestants(self, known: Mapping[str, Callable[[], Any]]) -> dict[str, Any]:
        """Make those that are installed."""
        made = {}
        for name, make in known.items():
            try:
                made[name] = make()
            except ImportError:
                self.missing.add(name)
        return made


def interleave(rounds: int, calls: Mapping[str, Callable[[], float]]) -> dict[str, list[float]]:
    """Call each ``rounds`` times, taking turns, with the order reversed every other time."""
    samples: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(rounds):
        for name in reversed(calls) if turn % 2 else calls:
            samples[name].append(calls[name]())
    return samples


@contextmanager
def no_gc() -> Iterator[None]:
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def cpu_seconds() -> float:
    """Of this process, all threads, both in the kernel and out of it."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def pin(core: int | None) -> None:
    if core is not None:
        os.sched_setaffinity(0, {core})


# -- contestants in processes of their own


class Worker:
    """A process that calls functions of a module when told, one at a time, and sleeps in between.

    Args:
        module: Its functions are called with keyword arguments of JSON and return JSON.
        setup: The same, for its function ``setup``, called first.
    """

    def __init__(self, module: str, *, pinned: bool = True, **setup: Any) -> None:
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("OPENAI_", "WEBSOCKET_"))}
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "benchmarks.harness", module],
            cwd=HERE.parent,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        if pinned and CORE is not None:
            os.sched_setaffinity(self._process.pid, {CORE})
        try:
            self.call("setup", patience=60.0, **setup)
        except BaseException:
            self.close()
            raise

    @property
    def pid(self) -> int:
        return self._process.pid

    def call(self, function: str, *, patience: float = 300.0, **arguments: Any) -> Any:
        """Call and wait. Raises ImportError as the function did, RuntimeError for anything else.

        Some peers hang now and then: after ``patience`` seconds the process is of no use any more.
        """
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps([function, arguments]) + "\n")
            self._process.stdin.flush()
            if not select.select([self._process.stdout], [], [], patience)[0]:
                self.close()
                raise RuntimeError(f"hangs, for {patience:g} s now")
            line = self._process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise RuntimeError(f"the process ended with {self._process.wait()}")
        answer = json.loads(line)
        if "missing" in answer:
            raise ImportError(answer["missing"])
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer["value"]

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass


def worker_main(module_name: str) -> None:
    """Serve a :class:`Worker`."""
    import importlib

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what contestants print is not an answer
    module: Any = None
    for line in sys.stdin:
        function, arguments = json.loads(line)
        try:
            if module is None:
                module = importlib.import_module(module_name)
            answer = {"value": getattr(module, function)(**arguments)}
        except ImportError as error:
            answer = {"missing": str(error)}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
    os._exit(0)  # whatever threads the contestants left


def wait_until(condition: Callable[[], bool], timeout: float, what: str) -> float:
    """Poll until ``condition`` holds; return the seconds it took."""
    since = time.perf_counter()
    while not condition():
        if time.perf_counter() - since > timeout:
            raise RuntimeError(f"not within {timeout:g} s: {what}")
        time.sleep(0.0005)
    return time.perf_counter() - since


if __name__ == "__main__":
    worker_main(sys.argv[1])
