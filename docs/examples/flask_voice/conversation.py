"""One spoken question, one spoken answer; and WAV files as the Realtime API's audio/pcm."""

from __future__ import annotations

import base64
import io
import time
import wave

from rtpool_sync import RealtimeConnection

RATE = 24_000
CHUNK = RATE * 2 // 10  # bytes of a tenth of a second

#: The page says when the speaker has finished: the server need not listen for it.
SESSION = {
    "type": "realtime",
    "output_modalities": ["audio"],
    "audio": {"input": {"turn_detection": None}},
}


class ConversationFailed(Exception):
    """The server answered with something else than an answer."""


def read_wav(data: bytes) -> bytes:
    """Return the samples of a WAV of 24 kHz, mono, 16 bits.

    Raises:
        ValueError: It is something else.
    """
    try:
        with wave.open(io.BytesIO(data)) as wav:
            form = (wav.getframerate(), wav.getnchannels(), wav.getsampwidth())
            samples = wav.readframes(wav.getnframes())
    except (wave.Error, EOFError) as error:
        raise ValueError("not a WAV file") from error
    if form != (RATE, 1, 2):
        raise ValueError("a WAV of 24 kHz, mono, 16 bits is needed")
    if len(samples) < CHUNK:
        raise ValueError("too short")
    return samples


def write_wav(samples: bytes) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as wav:
        wav.setnchannels(1)
        wav.setsampwidth(2)
        wav.setframerate(RATE)
        wav.writeframes(samples)
    return file.getvalue()


def converse(conn: RealtimeConnection, question: bytes, seconds: float) -> tuple[bytes, str]:
    """Ask, and return the samples and the words of the answer.

    Raises:
        ConversationFailed: There was none.
        RtpoolError: The connection broke, or nothing came within ``seconds``.
    """
    end = time.monotonic() + seconds
    for at in range(0, len(question), CHUNK):
        audio = base64.b64encode(question[at : at + CHUNK]).decode()
        conn.send({"type": "input_audio_buffer.append", "audio": audio})
    conn.send({"type": "input_audio_buffer.commit"})
    conn.send({"type": "response.create"})
    answer, words = [], []
    while True:
        event = conn.recv(max(0.0, end - time.monotonic()))
        if event["type"] == "response.output_audio.delta":
            answer.append(base64.b64decode(event["delta"]))
        elif event["type"] == "response.output_audio_transcript.delta":
            words.append(event["delta"])
        elif event["type"] == "error":
            raise ConversationFailed(event["error"]["message"])
        elif event["type"] == "response.done":
            if event["response"]["status"] != "completed":
                raise ConversationFailed(f"the response was {event['response']['status']}")
            return b"".join(answer), "".join(words)
