"""Talk to a model from a web page: record a question or take a canned one, hear the answer. See README.md."""

from __future__ import annotations

import os
from contextlib import nullcontext
from importlib import resources
from urllib.parse import quote

from conversation import SESSION, ConversationFailed, converse, read_wav, write_wav
from dynaconf import FlaskDynaconf
from flask import Flask, Response, render_template, request, send_file

from rtpool_sync import PoolExhausted, PoolTimeout, RtpoolError
from rtpool_sync.contrib.flask import Realtime

realtime = Realtime(session=SESSION)


def create_app() -> Flask:
    app = Flask(__name__)
    FlaskDynaconf(
        app,
        settings_files=[os.path.join(app.root_path, name) for name in ("settings.toml", ".secrets.toml")],
        env_switcher="ENV_FOR_DYNACONF",
        load_dotenv=False,
    )
    app.config["MAX_CONTENT_LENGTH"] = 4 * 1024 * 1024  # more than a minute of speech
    realtime.init_app(app)
    # Where Prometheus looks unless it is told otherwise.
    app.add_url_rule("/metrics", "metrics", app.view_functions["realtime.metrics"])

    @app.get("/")
    def page() -> str:
        return render_template("page.html", canned="/hello.wav")

    @app.get("/hello.wav")
    def canned() -> Response:
        with resources.as_file(resources.files("rtpool_sync").joinpath("data/hello.wav")) as path:
            return send_file(path, mimetype="audio/wav")

    @app.post("/talk")
    def talk() -> Response:
        """A WAV of speech in, a WAV of speech out; what was said is in the header X-Said."""
        question = read_wav(request.get_data())
        with realtime.connection(timeout=app.config["PATIENCE"]) as conn:
            answer, said = converse(conn, question, app.config["PATIENCE"])
        return Response(write_wav(answer), mimetype="audio/wav", headers={"X-Said": quote(said)})

    @app.errorhandler(ValueError)
    def bad_question(error: ValueError) -> tuple[dict[str, str], int]:
        return {"error": str(error)}, 400

    @app.errorhandler(ConversationFailed)
    @app.errorhandler(RtpoolError)
    def no_answer(error: Exception) -> tuple[dict[str, str], int, dict[str, str]]:
        app.logger.warning("no answer: %s", error)
        if isinstance(error, (PoolTimeout, PoolExhausted)):
            return {"error": "all lines are busy, try again"}, 503, {"Retry-After": "5"}
        return {"error": "the model did not answer"}, 502, {}

    return app


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
