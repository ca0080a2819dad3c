# ruff: noqa: INP001 - a standalone program
"""An app behind the front door: it greets people by the name that the proxy passes on."""

from urllib.parse import unquote

from flask import Flask, request

app = Flask(__name__)


@app.get("/")
@app.get("/<path:_page>")
def greet(_page: str = "") -> tuple[str, dict[str, str]]:
    name = unquote(request.headers["Remote-Name"])
    return f"Hello {name}, you are number {request.headers['Remote-User']}.\n", {"Content-Type": "text/plain"}
