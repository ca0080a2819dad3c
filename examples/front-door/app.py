# ruff: noqa: INP001 - a program of its own
"""An app behind the front door: it greets by name whoever the proxy says it is."""

from urllib.parse import unquote

from flask import Flask, request

app = Flask(__name__)


@app.get("/")
@app.get("/<path:_page>")
def greet(_page: str = "") -> tuple[str, dict[str, str]]:
    name = unquote(request.headers["Remote-Name"])
    return f"Hello {name}, you are number {request.headers['Remote-User']}.\n", {"Content-Type": "text/plain"}
