# ruff: noqa: INP001 - a standalone program
"""An app behind the front door: it greets people by the name that the proxy passes on."""

from urllib.parse import unquote

from flask import Flask, request
from markupsafe import escape

app = Flask(__name__)


@app.get("/")
@app.get("/<path:_page>")
def greet(_page: str = "") -> str:
    name, number = (escape(unquote(request.headers[header])) for header in ("Remote-Name", "Remote-User"))
    return f'<!doctype html><p>Hello {name}, you are number {number}. <a href="/logout">Sign out</a>\n'
