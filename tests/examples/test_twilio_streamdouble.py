"""streamdouble, a simulator of Twilio that is not ours, calls the example docs/examples/twilio_flask.

It needs Python 3.11. On 3.10 these tests are skipped and say why; on every later version they run,
or fail because it is not installed.
"""

from __future__ import annotations

import asyncio
import configparser
import json
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree as ET

import pytest
from server_process import ROOT, ServerProcess, clean_environment, eventually, flask_port, running

if TYPE_CHECKING or sys.version_info >= (3, 11):
    from streamdouble.chaos import Impairments, Network
    from streamdouble.pacer import Pacer
    from streamdouble.scenario import Scenario, Wait, load
    from streamdouble.session import Session, SessionConfig, SessionResult

needs_3_11 = pytest.mark.skipif(sys.version_info < (3, 11), reason="streamdouble needs Python 3.11 or later")

FOLDER = ROOT / "docs/examples/twilio_flask"
CALLS = FOLDER / "calls"
JITTER = {"jitter": 40.0, "stalls": 200.0}  # milliseconds


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    folder = tmp_path_factory.mktemp("twilio_flask")
    with running([sys.executable, FOLDER / "app.py"], folder, flask_port, PORT="0") as server:
        yield server


def ask(server: ServerProcess) -> tuple[str, dict[str, str]]:
    """What the webhook wants to be connected with. It is not told of a call: streamdouble makes its id up."""
    with urllib.request.urlopen(f"http://127.0.0.1:{server.port}/voice", b"", timeout=20) as response:
        stream = ET.fromstring(response.read()).find("Connect/Stream")
    assert stream is not None
    return stream.attrib["url"], {entry.attrib["name"]: entry.attrib["value"] for entry in stream}


class Told:
    """What the application says of a call in its log."""

    def __init__(self, server: ServerProcess, result: SessionResult) -> None:
        self.call_sid = result.identity.call_sid
        found = eventually(lambda: self._ended(server), f"the log tells of no end of {self.call_sid}")
        self.text = "\n".join(line for line in server.log.read_text().splitlines() if self.call_sid in line)
        self.why, self.heard, self.said = found[1], float(found[2]), float(found[3])
        self.interruptions, self.violations = int(found[4]), int(found[5])
        self.functions = re.findall(r": function (\w+)", self.text)
        self.failures = [line for line in self.text.splitlines() if "WARNING" in line or "ERROR" in line]

    def _ended(self, server: ServerProcess) -> re.Match[str] | None:
        pattern = rf"{self.call_sid}: ended after [\d.]+ s: (\w+) .*; heard ([\d.]+) s, said ([\d.]+) s, "
        return re.search(pattern + r"(\d+) interruptions, (\d+) violations", server.log.read_text())


def place(
    server: ServerProcess,
    scenario: str,
    kind: type[Session] | None = None,
    network: Jitter | None = None,
    **options: Any,
) -> tuple[SessionResult, Told]:
    """Make the call; what is expected in the file has to be so, and the line free afterwards."""
    url, parameters = ask(server)
    config = SessionConfig(custom_parameters=parameters, **options)
    session = (kind or Session)(url, scenario=load(CALLS / f"{scenario}.yaml"), config=config)
    if network is not None:
        session.network = network
        network.pacer = session.pacer
    result = asyncio.run(session.run())
    told = Told(server, result)
    assert result.expectations
    assert result.failed_expectations == [], told.text
    assert result.violations == result.unknown_events == []
    assert not result.timed_out
    assert not result.closed_before_audio
    free(server)
    return result, told


def free(server: ServerProcess) -> None:
    """No line is in use, and none was lost."""

    def all_free() -> bool:
        stats = server.get("/realtime/stats")[1].decode()
        return set(re.findall(r'"(?:in_use|waiting)": (\d+)', stats)) == {"0"}

    eventually(all_free, "a line is still in use")


@needs_3_11
def test_greeting(server: ServerProcess) -> None:
    result, told = place(server, "greeting")
    assert result.audio_duration_s == pytest.approx(0.4)
    assert result.marks_echoed == result.marks_received != []
    assert told.why == "caller"
    assert told.said == pytest.approx(0.4, abs=0.06)  # every mark came back
    assert (told.violations, told.failures) == (0, [])


@needs_3_11
def test_turn(server: ServerProcess) -> None:
    result, told = place(server, "turn")
    # The embedded server says back what it heard: nothing of it may be missing.
    assert result.audio_duration_s == pytest.approx(0.4 + 3.5, abs=0.25)
    assert result.marks_echoed == result.marks_received
    assert told.heard == pytest.approx(result.frames_sent * 0.02, abs=0.1)
    assert (told.why, told.interruptions, told.violations, told.failures) == ("caller", 0, 0, [])
    assert ": assistant: You said: <audio " in told.text


@needs_3_11
def test_barge_in(server: ServerProcess) -> None:
    result, told = place(server, "barge_in")
    assert result.clears_received == 1
    assert told.interruptions == 1
    # The model knows what was heard of its answer, not what was sent: two seconds and a little.
    sent = result.audio_duration_s
    assert told.said < sent - 0.5
    after = [event.kind for event in result.events]
    assert "media_received" in after[after.index("clear_received") :], "the interruption was not answered"
    assert (told.why, told.violations, told.failures) == ("caller", 0, [])


@needs_3_11
@pytest.mark.parametrize("scenario", ["keys", "impatient"])
def test_keys_and_goodbye(server: ServerProcess, scenario: str) -> None:
    result, told = place(server, scenario)
    assert told.functions[-1] == "hang_up"
    assert told.functions.count("opening_hours") == (1 if scenario == "keys" else 2)
    assert told.why == "hangup"
    assert result.closed_by == "agent"
    # It waited until the goodbye had been played, and no longer.
    assert result.marks_echoed == result.marks_received
    assert told.said == pytest.approx(result.audio_duration_s, abs=0.06)
    assert (told.violations, told.failures) == (0, [])


@needs_3_11
def test_hangup_in_the_middle(server: ServerProcess) -> None:
    result, told = place(server, "hangup")
    assert result.closed_by == "caller"
    assert told.why == "telephony_closed"
    assert (told.violations, told.failures) == (0, [])
    place(server, "greeting")  # the line is as good as new


@needs_3_11
@pytest.mark.parametrize("scenario", ["turn", "barge_in"])
@pytest.mark.parametrize("kind", ["jitter", "stalls"])
def test_packet_loss_and_jitter(server: ServerProcess, scenario: str, kind: str) -> None:
    network = (Jitter if kind == "jitter" else Stalls)(Impairments(loss=0.1, jitter_ms=JITTER[kind]), seed=1)
    result, told = place(server, scenario, network=network)
    assert result.frames_dropped > 0
    # What arrived was passed on, all of it.
    assert told.heard == pytest.approx(result.frames_sent * 0.02, abs=0.1)
    assert (told.interruptions > 0) == (scenario == "barge_in")
    assert (told.why, told.violations, told.failures) == ("caller", 0, [])


if TYPE_CHECKING or sys.version_info >= (3, 11):

    class Jitter(Network):
        """Each frame comes up to ``jitter_ms`` after it is due.

        (By itself the simulator waits so long once more, however late it is by then, and on a busy
        machine it falls ever further back, until what it sends is too old to be passed on.)
        """

        pacer: Pacer

        def delay_s(self) -> float:
            due = self.pacer.origin + self.pacer.stats.scheduled_s
            return max(0.0, due + super().delay_s() - time.perf_counter())

    class Stalls(Jitter):
        """One frame in twenty is kept, and all behind it."""

        def delay_s(self) -> float:
            return super().delay_s() if self._random.random() < 0.05 else 0.0

    class Rude(Session):
        """A caller's side that breaks the protocol, every so many frames, in each way in turn."""

        every = 10
        sent = 0
        spoilt = 0

        async def _send(self, connection: Any, frame: dict[str, Any]) -> None:
            await super()._send(connection, frame)
            if frame["event"] in ("connected", "start", "stop"):
                return
            self.sent += 1
            if self.sent % self.every == 0:
                await connection.send(self.garbage(self.spoilt))
                self.spoilt += 1

        def garbage(self, number: int) -> str | bytes:
            sid = self.encoder.identity.stream_sid
            media = {"track": "inbound", "chunk": "1", "timestamp": "0", "payload": "//////8="}
            ways: list[str | bytes | dict[str, Any]] = [
                b"\xff" * 160,
                "not JSON",
                "[]",
                "{}",
                {"event": "media", "streamSid": "MZother", "media": media},
                {"event": "media", "media": media},
                {"event": "media", "streamSid": sid},
                {"event": "media", "streamSid": sid, "media": {**media, "payload": "***"}},
                {"event": "start", "streamSid": sid, "start": {"streamSid": sid, "callSid": "CAother"}},
                {"event": "dtmf", "streamSid": sid, "dtmf": {}},
                {"event": "stop", "streamSid": "MZother", "stop": {}},
                {"event": "mark", "streamSid": sid},
            ]
            way = ways[number % len(ways)]
            return json.dumps(way) if isinstance(way, dict) else way

    class Cut(Session):
        """A caller's side whose cable is cut where the scenario hangs up."""

        async def _run_step(self, connection: Any, step: Any) -> None:
            if type(step).__name__ != "Hangup":
                await super()._run_step(connection, step)
                return
            self._note_close("caller")
            connection.transport.abort()


@needs_3_11
def test_protocol_violations_are_counted_and_survived(server: ServerProcess) -> None:
    url, parameters = ask(server)
    config = SessionConfig(custom_parameters=parameters)
    session = Rude(url, scenario=load(CALLS / "turn.yaml"), config=config)
    result = asyncio.run(session.run())
    told = Told(server, result)
    assert 24 <= session.spoilt <= 100, "each way twice, and not so many that the call is ended"
    assert told.violations == session.spoilt
    assert result.failed_expectations == []
    assert result.audio_duration_s == pytest.approx(0.4 + 3.5, abs=0.25)
    assert told.why == "caller"
    free(server)


@needs_3_11
def test_too_many_protocol_violations_end_the_call(server: ServerProcess) -> None:
    url, parameters = ask(server)
    session = Rude(
        url, scenario=Scenario("rude", [Wait(20.0)]), config=SessionConfig(custom_parameters=parameters)
    )
    session.every = 1
    result = asyncio.run(session.run())
    told = Told(server, result)
    assert (told.why, result.closed_by) == ("protocol", "agent")
    assert told.violations == 101
    free(server)


@needs_3_11
def test_the_cable_is_cut(server: ServerProcess) -> None:
    _, told = place(server, "hangup", Cut)
    assert told.why == "telephony_lost"


@needs_3_11
def test_the_command_of_the_readme(server: ServerProcess, tmp_path: Path) -> None:
    """With a WAV of another rate, which takes its extra ``resample``."""
    url, parameters = ask(server)
    arguments = ["call", url, "--audio", str(ROOT / "rtpool_sync/data/hello.wav"), "--json"]
    arguments += ["--param", f"token={parameters['token']}", "--out", str(tmp_path / "reply.wav")]
    done = subprocess.run(
        [Path(sys.executable).with_name("streamdouble"), *arguments],
        cwd=tmp_path,
        env=clean_environment(),
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["violations"] == []
    assert (tmp_path / "reply.wav").stat().st_size > 0.3 * 8000 * 2  # the greeting; it talked into that


def test_every_scenario_is_run() -> None:
    source = Path(__file__).read_text()
    assert {path.stem for path in CALLS.glob("*.yaml")} == {
        name for name in re.findall(r'"(\w+)"', source) if (CALLS / f"{name}.yaml").exists()
    }


def test_it_is_installed_wherever_it_can_be() -> None:
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    lines = config["options.extras_require"]["test"].splitlines()
    assert [line for line in lines if line.startswith("streamdouble")] == [
        "streamdouble[resample]>=0.3; python_version >= '3.11'"
    ]
