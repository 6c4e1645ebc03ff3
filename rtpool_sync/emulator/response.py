"""One response: the events of its life, step by step."""

from __future__ import annotations

import base64
from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, Protocol

from . import mind
from .audio import FORMATS, Format, convert, tone
from .conversation import Conversation, Item
from .plan import Plan

__all__ = ["Pace", "Response", "Stage"]

#: No answer has more text deltas than this.
_MOST_DELTAS = 32


@dataclass(frozen=True)
class Pace:
    """How fast a session works, in seconds.

    Attributes:
        created: From ``response.create`` to ``response.created``.
        response: From ``response.created`` to the first output.
        delta: Between two deltas.
        realtime: Send audio no faster than it plays.
        audio_chunk_ms: Audio in one delta.
        rate_limits: From ``response.done`` to ``rate_limits.updated``.
        transcription: From the commit of audio to its transcription.
    """

    created: float = 0.0
    response: float = 0.02
    delta: float = 0.0
    realtime: bool = False
    audio_chunk_ms: int = 200
    rate_limits: float = 0.043
    transcription: float = 0.05


class Stage(Protocol):
    """What a response needs from its session."""

    conversation: Conversation
    pace: Pace

    def emit(self, type_: str, /, **fields: Any) -> None: ...

    def new_id(self, prefix: str) -> str: ...

    def audio_sent(self) -> None: ...

    def response_over(self, response: Response) -> None: ...


class Response:
    """A response, taken through its life by :meth:`step`."""

    def __init__(self, stage: Stage, plan: Plan) -> None:
        self.id = stage.new_id("resp")
        self.plan = plan
        self.status = "in_progress"
        self.created = False
        self.playback = 0.0  # seconds of audio sent
        self._stage = stage
        self._details: dict[str, Any] | None = None
        self._usage: dict[str, Any] | None = None
        self._output: list[Item] = []
        self._context: list[Item] = []
        self._item: Item | None = None  # the one being made
        self._part: str | None = None  # "text" or "audio" while a content part is open
        self._text = ""
        self._audio = bytearray()
        self._steps = self._run()

    @property
    def over(self) -> bool:
        return self.status != "in_progress"

    def step(self) -> float | None:
        """Go on; return the seconds until the next step, or ``None`` when all is done."""
        return next(self._steps, None)

    def public(self) -> dict[str, Any]:
        plan = self.plan
        return {
            "object": "realtime.response",
            "id": self.id,
            "status": self.status,
            "status_details": self._details,
            "output": [item.shown() for item in self._output],
            "conversation_id": self._stage.conversation.id if plan.in_conversation else None,
            "output_modalities": plan.modalities,
            "max_output_tokens": plan.max_output_tokens,
            "audio": {"output": {"format": plan.format, "voice": plan.voice}},
            "usage": self._usage,
            "metadata": plan.metadata,
        }

    # -- its life -------------------------------------------------------------------

    def _run(self) -> Generator[float, None, None]:
        stage, plan = self._stage, self.plan
        if stage.pace.created > 0.0:
            yield stage.pace.created
        self.created = True
        stage.emit("response.created", response=self.public())
        if stage.pace.response > 0.0:
            yield stage.pace.response
        self._context = list(stage.conversation.items() if plan.input is None else plan.input)
        reply = mind.reply(
            mind.Context(
                plan.instructions, plan.tools, plan.tool_choice, self._context, plan.metadata, plan.prompt
            )
        )
        short = False
        if reply.tool is not None:
            yield from self._call(reply.tool, reply.arguments)
        else:
            text, short = self._cut(reply.text)
            if plan.modalities == ["audio"]:
                yield from self._speak(text)
            else:
                yield from self._write(text)
        self._close_item("incomplete" if short else "completed")
        if short:
            self._finish("incomplete", {"type": "incomplete", "reason": "max_output_tokens"})
        else:
            self._finish("completed", None)

    def _cut(self, text: str) -> tuple[str, bool]:
        limit = self.plan.max_output_tokens
        words = text.split(" ")
        if limit == "inf" or len(words) <= limit:
            return text, False
        return " ".join(words[:limit]), True

    def cancel(self, reason: str) -> None:
        """End it early: what was begun is closed as incomplete."""
        self._steps.close()
        self._close_item("incomplete")
        self._finish("cancelled", {"type": "cancelled", "reason": reason})

    def _finish(self, status: str, details: dict[str, Any] | None) -> None:
        self.status, self._details, self._usage = status, details, self._count_tokens()
        self._stage.emit("response.done", response=self.public())
        self._stage.response_over(self)

    def _count_tokens(self) -> dict[str, Any]:
        """Tokens by the rule of thumb of one a word, ten a second heard and twenty a second spoken."""
        sounds = [sound for item in self._context for sound in item.audio.values()]
        heard = sum(format_.milliseconds(len(audio)) for audio, format_ in sounds)
        text_in = len(self.plan.instructions.split()) + sum(len(item.heard.split()) for item in self._context)
        audio_in = int(heard / 100)
        text_out = sum(len(item.heard.split()) for item in self._output)
        audio_out = int(self.playback * 20)
        return {
            "total_tokens": text_in + audio_in + text_out + audio_out,
            "input_tokens": text_in + audio_in,
            "output_tokens": text_out + audio_out,
            "input_token_details": {
                "text_tokens": text_in,
                "audio_tokens": audio_in,
                "image_tokens": 0,
                "cached_tokens": 0,
                "cached_tokens_details": {"text_tokens": 0, "audio_tokens": 0, "image_tokens": 0},
            },
            "output_token_details": {"text_tokens": text_out, "audio_tokens": audio_out},
        }

    # -- items ------------------------------------------------------------------------

    def _open_item(self, **fields: Any) -> None:
        stage = self._stage
        data = {"id": stage.new_id("item"), "object": "realtime.item", "status": "in_progress", **fields}
        self._item = item = Item(data)
        self._output.append(item)
        stage.emit("response.output_item.added", response_id=self.id, output_index=0, item=item.shown())
        if self.plan.in_conversation:
            before = stage.conversation.insert(item)
            stage.emit("conversation.item.added", previous_item_id=before, item=item.shown())

    def _open_part(self, kind: str) -> None:
        self._part = kind
        part = {"type": "text", "text": ""} if kind == "text" else {"type": "audio", "transcript": ""}
        self._part_event("response.content_part.added", part=part)

    def _part_event(self, type_: str, **fields: Any) -> None:
        assert self._item is not None
        self._stage.emit(
            type_, response_id=self.id, item_id=self._item.id, output_index=0, content_index=0, **fields
        )

    def _close_item(self, status: str) -> None:
        item, stage = self._item, self._stage
        if item is None:
            return
        text = self._text
        item.heard = text
        item.data["status"] = status
        if item.data["type"] == "function_call":
            item.data["arguments"] = text
            item.heard = f"{item.data['name']}({text})"
            stage.emit(
                "response.function_call_arguments.done",
                response_id=self.id,
                item_id=item.id,
                output_index=0,
                call_id=item.data["call_id"],
                name=item.data["name"],
                arguments=text,
            )
        elif self._part == "text":
            item.data["content"] = [{"type": "output_text", "text": text}]
            self._part_event("response.output_text.done", text=text)
            self._part_event("response.content_part.done", part={"type": "text", "text": text})
        elif self._part == "audio":
            item.data["content"] = [{"type": "output_audio", "transcript": text}]
            item.audio[0] = (bytes(self._audio), self._format)
            self._part_event("response.output_audio.done")
            self._part_event("response.output_audio_transcript.done", transcript=text)
            self._part_event("response.content_part.done", part={"type": "audio", "transcript": text})
        self._item = self._part = None
        # A client may have deleted the item while it was being made.
        if self.plan.in_conversation and item.id in stage.conversation:
            before = stage.conversation.before(item.id)
            stage.emit("conversation.item.done", previous_item_id=before, item=item.shown())
        stage.emit("response.output_item.done", response_id=self.id, output_index=0, item=item.shown())

    # -- the three kinds of output ---------------------------------------------------------

    @staticmethod
    def _pieces(text: str, most: int = _MOST_DELTAS) -> list[str]:
        words = text.split(" ")
        words[1:] = [f" {word}" for word in words[1:]]
        each = -(-len(words) // most)
        return ["".join(words[start : start + each]) for start in range(0, len(words), each)]

    def _pause(self, seconds: float = 0.0) -> Generator[float, None, None]:
        seconds = max(seconds, self._stage.pace.delta)
        if seconds > 0.0:
            yield seconds

    def _write(self, text: str) -> Generator[float, None, None]:
        self._open_item(type="message", role="assistant", content=[])
        self._open_part("text")
        for piece in self._pieces(text):
            self._text += piece
            self._part_event("response.output_text.delta", delta=piece)
            yield from self._pause()

    def _call(self, name: str, arguments: str) -> Generator[float, None, None]:
        self._open_item(type="function_call", name=name, call_id=self._stage.new_id("call"), arguments="")
        assert self._item is not None
        for start in range(0, len(arguments), 64):
            piece = arguments[start : start + 64]
            self._text += piece
            self._stage.emit(
                "response.function_call_arguments.delta",
                response_id=self.id,
                item_id=self._item.id,
                output_index=0,
                call_id=self._item.data["call_id"],
                delta=piece,
            )
            yield from self._pause()

    @property
    def _format(self) -> Format:
        return FORMATS[self.plan.format["type"]]

    def _speak(self, text: str) -> Generator[float, None, None]:
        """Say the caller's own words back: their audio, with the answer's text as the transcript."""
        stage, target = self._stage, self._format
        heard = mind.last_audio(self._context)
        audio = convert(*heard, target) if heard is not None else tone(target.name, 400)
        self._open_item(type="message", role="assistant", content=[])
        self._open_part("audio")
        size = target.size(stage.pace.audio_chunk_ms)
        chunks = [audio[start : start + size] for start in range(0, len(audio), size)]
        pieces = self._pieces(text, max(1, min(len(chunks), _MOST_DELTAS)))
        for index in range(max(len(chunks), len(pieces))):
            if index < len(pieces):
                self._text += pieces[index]
                self._part_event("response.output_audio_transcript.delta", delta=pieces[index])
            if index < len(chunks):
                chunk = chunks[index]
                self._audio += chunk
                stage.audio_sent()
                self._part_event("response.output_audio.delta", delta=base64.b64encode(chunk).decode())
                seconds = target.milliseconds(len(chunk)) / 1000
                self.playback += seconds
                yield from self._pause(seconds if stage.pace.realtime else 0.0)
