"""The servers to measure against: one in C, the same in Python where there is no compiler, the emulator."""

from __future__ import annotations

import base64
import hashlib
import os
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

from . import harness

__all__ = ["Emulator", "Server", "Servers"]

HERE = Path(__file__).parent


class Server(NamedTuple):
    """Where a server listens, and what a client must trust to talk to it over TLS."""

    host: str
    port: int
    ca_file: str | None = None

    @property
    def url(self) -> str:
        return f"{'wss' if self.ca_file else 'ws'}://{self.host}:{self.port}/v1/realtime"


class Servers:
    """One plain server and one over TLS, each a process, on the core of the workers."""

    def __init__(self) -> None:
        import trustme

        self._dir = Path(tempfile.mkdtemp(prefix="rtpool-bench-"))
        authority = trustme.CA()
        certificate = authority.issue_cert("localhost", "127.0.0.1")
        files = [self._dir / name for name in ("ca.pem", "cert.pem", "key.pem")]
        authority.cert_pem.write_to_path(str(files[0]))
        certificate.cert_chain_pems[0].write_to_path(str(files[1]))
        certificate.private_key_pem.write_to_path(str(files[2]))
        program = self._dir / "server"
        self.language = "C" if _compile(program) else "Python"
        command = [str(program)] if self.language == "C" else [sys.executable, "-m", "benchmarks.servers"]
        self._processes: list[subprocess.Popen[str]] = []
        self.plain = self._start(command, None)
        self.tls = self._start([*command, str(files[1]), str(files[2])], str(files[0]))

    def _start(self, command: list[str], ca_file: str | None) -> Server:
        process = subprocess.Popen(command, cwd=HERE.parent, stdout=subprocess.PIPE, text=True)
        self._processes.append(process)
        if harness.CORE is not None:
            os.sched_setaffinity(process.pid, {harness.CORE})
        assert process.stdout is not None
        return Server("127.0.0.1", int(process.stdout.readline()), ca_file)

    def __enter__(self) -> Servers:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            if process.stdout is not None:
                process.stdout.close()
        shutil.rmtree(self._dir)


def _compile(program: Path) -> bool:
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or os.environ.get("BENCH_SERVER") == "python":
        return False
    command = [compiler, "-O2", "-o", str(program), str(HERE / "server.c"), "-lssl", "-lcrypto", "-lpthread"]
    return subprocess.run(command, capture_output=True).returncode == 0


class Emulator:
    """``rtpool emulator`` over TLS, ``latency`` milliseconds of round trip away."""

    def __init__(self, latency: float) -> None:
        command = [sys.executable, "-m", "rtpool_sync", "emulator", "--port", "0", "--tls"]
        self._process = subprocess.Popen(
            [*command, "--latency", str(latency)], cwd=HERE.parent, stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        self.base_url = self.ca_file = ""
        while not (self.base_url and self.ca_file):
            line = self._process.stdout.readline()
            if not line:
                raise RuntimeError("the emulator did not start")
            name, _, value = line.strip().removeprefix("export ").partition("=")
            if name == "OPENAI_BASE_URL":
                self.base_url = value
            elif name == "WEBSOCKET_CA_FILE":
                self.ca_file = value

    @property
    def url(self) -> str:
        return "wss" + self.base_url.removeprefix("https") + "/realtime?model=gpt-realtime"

    def __enter__(self) -> Emulator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)  # it removes its certificate
        try:
            self._process.wait(5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        assert self._process.stdout is not None
        self._process.stdout.close()


# -- the server of server.c in Python, for machines without a compiler


def _frames(size: int, count: int) -> bytes:
    head = b'{"type":"response.output_audio.delta","delta":"'
    body = head + b"A" * (size - len(head) - 2) + b'"}' if size > len(head) + 2 else b"x" * size
    header = bytes((0x81, size)) if size < 126 else b"\x81\x7e" + size.to_bytes(2, "big")
    if size > 65535:
        header = b"\x81\x7f" + size.to_bytes(8, "big")
    return (header + body) * count


class _Served:
    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=65536)
        self._echo = b""

    def run(self) -> None:
        key = b""
        while (line := self._file.readline().rstrip()) != b"":
            name, _, value = line.partition(b":")
            if name.lower() == b"sec-websocket-key":
                key = value.strip()
        accept = base64.b64encode(hashlib.sha1(key + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest())
        head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n"
        self._sock.sendall(head + b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n")
        while self._message():
            pass

    def _message(self) -> bool:
        start = self._file.read(2)
        if len(start) < 2:
            return False
        opcode, size = start[0] & 15, start[1] & 127
        if size > 125:
            size = int.from_bytes(self._file.read(2 if size == 126 else 8), "big")
            self._file.read(4 + size)
            if self._echo:
                self._sock.sendall(self._echo)
            return True
        key = self._file.read(4)
        text = bytes(byte ^ key[at & 3] for at, byte in enumerate(self._file.read(size)))
        if opcode >= 8:
            if opcode != 10:
                self._sock.sendall(bytes((0x80 | (10 if opcode == 9 else 8), len(text))) + text)
            return opcode != 8
        self._obey(text.decode())
        return True

    def _obey(self, text: str) -> None:
        verb, *numbers = text.split()
        if verb == "push" and len(numbers) == 3:
            left, size, batch = map(int, numbers)
            frames = _frames(size, batch)
            while left > 0:
                self._sock.sendall(frames[: (len(frames) // batch) * min(left, batch)])
                left -= batch
        elif verb == "echo" and len(numbers) == 1:
            self._echo = _frames(int(numbers[0]), 1) if int(numbers[0]) else b""
        else:
            self._sock.sendall(b"\x81\x02ok")


def _serve(sock: socket.socket, context: ssl.SSLContext | None) -> None:
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context is not None:
            sock = context.wrap_socket(sock, server_side=True)
        _Served(sock).run()
    except OSError:
        pass
    finally:
        sock.close()


def main(arguments: list[str]) -> None:
    context = None
    if arguments:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*arguments)
    threading.stack_size(1 << 18)
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            threading.Thread(target=_serve, args=(listener.accept()[0], context), daemon=True).start()


if __name__ == "__main__":
    main(sys.argv[1:])
