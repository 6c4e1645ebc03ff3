"""A telephone hotline: AudioCodes VoiceAI Connect brings the calls, a model answers them. See README.md."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

from dynaconf import FlaskDynaconf
from flask import Flask, Response, request
from flask_sock import Sock
from hotline import GREETING, Conversation, session

from rtpool_sync import RtpoolError
from rtpool_sync.bridges import AudioCodesBridge, TelephonyClosed
from rtpool_sync.bridges.audiocodes import Conversations, verify_bearer
from rtpool_sync.contrib.flask import Realtime


def from_this_machine() -> bool:
    """Who may see the monitoring: nobody who came through a proxy or a tunnel, as everybody else does."""
    return request.remote_addr in ("127.0.0.1", "::1") and "X-Forwarded-For" not in request.headers


realtime = Realtime(guard=from_this_machine)


def create_app() -> Flask:
    app = Flask(__name__)
    FlaskDynaconf(
        app,
        settings_files=[os.path.join(app.root_path, name) for name in ("settings.toml", ".secrets.toml")],
        env_switcher="ENV_FOR_DYNACONF",
        load_dotenv=False,
    )
    # Audio comes in pieces of up to a second; a ping a proxy takes for activity while nobody is heard.
    app.config["SOCK_SERVER_OPTIONS"] = {"max_message_size": 1 << 20, "ping_interval": 25}
    app.logger.setLevel("INFO")
    realtime.init_app(app)
    tokens = tokens_of(app)
    # A call whose WebSocket broke goes on over another one; in this process.
    conversations = Conversations(grace=app.config["GRACE"])

    @app.before_request
    def only_voice_ai_connect() -> Response | None:
        # Before the WebSocket is accepted: whoever can open one speaks with the model at your expense.
        if (
            request.path != "/bot"
            or not tokens
            or verify_bearer(request.headers.get("Authorization"), *tokens)
        ):
            return None
        app.logger.warning("%s without the token", request.path)
        return Response("the token is missing or wrong\n", 401, {"WWW-Authenticate": "Bearer"})

    @Sock(app).route("/bot")
    def bot(ws: Any) -> None:
        """The call itself. This thread is the call's until it ends."""
        try:
            call = AudioCodesBridge.answer(ws, conversations=conversations)
        except (TelephonyClosed, TimeoutError) as error:
            app.logger.info("no call for this thread: %s", error)  # it was resumed, or only validated
            return
        talk = Conversation(
            app.logger, transcripts=app.config["LOG_TRANSCRIPTS"], transfer_to=app.config["TRANSFER_TO"]
        )
        try:
            with realtime.connection(timeout=app.config["PATIENCE"], session=session(call)) as conn:
                result = AudioCodesBridge(
                    call,
                    conn,
                    greeting=GREETING,
                    on_function=talk.function,
                    on_dtmf=talk.keys,
                    on_transcript=talk.said,
                    max_duration=app.config["LONGEST_CALL"],
                ).run()
        except RtpoolError as error:
            app.logger.warning("%s: no line for it: %s", call.call_id, error)
            call.reject("all lines are busy")
            return
        talk.over(result)

    return app


def tokens_of(app: Flask) -> list[str]:
    """The tokens that are let in: one, or several with commas between them while one is being replaced.

    Raises:
        RuntimeError: There is none, and anybody could come in.
    """
    # From the environment as it is: what begins with FLASK_ is parsed, and a token of digits is a number.
    text = os.environ.get("AUDIOCODES_TOKEN") or str(app.config.get("AUDIOCODES_TOKEN") or "")
    tokens = [token.strip() for token in text.split(",") if token.strip()]
    if not tokens and not app.config["OPEN_TO_ANYBODY"]:
        raise RuntimeError("set AUDIOCODES_TOKEN: see README.md")
    return tokens


def main() -> None:
    app = create_app()
    server = nullcontext()
    if app.config["EMULATOR"]:
        from rtpool_sync.emulator import RealtimeServer

        server = RealtimeServer()
    with server as emulator:
        if emulator is not None:
            app.config["REALTIME_BASE_URL"] = emulator.base_url
        app.run(port=int(os.environ.get("PORT", "5000")))


if __name__ == "__main__":
    main()
