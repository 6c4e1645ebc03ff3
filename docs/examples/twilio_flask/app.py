"""A telephone hotline: Twilio brings the calls, a model answers them. See README.md."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any
from xml.sax.saxutils import quoteattr

from door import Door
from dynaconf import FlaskDynaconf
from flask import Flask, Response, abort, request
from flask_sock import Sock
from hotline import GREETING, Conversation, session

from rtpool_sync import RtpoolError
from rtpool_sync.bridges import TelephonyClosed, TwilioBridge
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
    app.config["SOCK_SERVER_OPTIONS"] = {"max_message_size": 65536}  # a real one has 300 bytes
    app.logger.setLevel("INFO")
    realtime.init_app(app)
    door = Door.of(app)

    @app.before_request
    def only_twilio() -> None:
        # Before the WebSocket is accepted: whoever can open one speaks with the model at your expense.
        if request.endpoint in ("voice", "stream") and not door.signed_by_twilio(request):
            app.logger.warning("%s without Twilio's signature", request.path)
            abort(403)

    @app.post("/voice")
    def voice() -> Response:
        """Twilio asks what to do with a call: connect it with the stream below."""
        lines = realtime.pool.stats()
        if lines.in_use + lines.waiting >= lines.max_connections:
            return twiml('<Reject reason="busy"/>')
        url = door.public_url(request, "/stream")
        parameters = {
            "token": door.token(request.form.get("CallSid", "")),
            "caller": request.form.get("From", ""),
            "callee": request.form.get("To", ""),
        }
        inside = "".join(
            f"<Parameter name={quoteattr(name)} value={quoteattr(value)}/>"
            for name, value in parameters.items()
        )
        return twiml(f"<Connect><Stream url={quoteattr(url)}>{inside}</Stream></Connect>")

    @Sock(app).route("/stream")
    def stream(ws: Any) -> None:
        """The call itself. This thread is the call's until it ends."""
        try:
            call = TwilioBridge.answer(ws)
        except (TelephonyClosed, TimeoutError) as error:
            app.logger.info("no call came about: %s", error)
            return
        if not door.admits(call.parameters.get("token", ""), call.call_id):
            app.logger.warning("%s: a stream that the webhook did not ask for", call.call_id)
            call.reject()
            return
        talk = Conversation(app.logger, transcripts=app.config["LOG_TRANSCRIPTS"])
        try:
            with realtime.connection(timeout=app.config["PATIENCE"], session=session(call)) as conn:
                result = TwilioBridge(
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
            call.reject()
            return
        talk.over(result)

    return app


def twiml(verbs: str) -> Response:
    text = f'<?xml version="1.0" encoding="UTF-8"?><Response>{verbs}</Response>'
    return Response(text, mimetype="text/xml")


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
