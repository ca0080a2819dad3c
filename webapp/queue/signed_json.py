"""Queue messages in signed JSON."""

from __future__ import annotations

import json
from datetime import datetime
from typing import Any

from huey.registry import Message
from huey.serializer import Serializer
from itsdangerous import BadSignature, Signer


class SignedJSON(Serializer):
    """Messages that run no code when read, and that only holders of our key can write.

    `keys`: oldest first; the last one signs, all of them are accepted.
    """

    def __init__(self, keys: list[str]) -> None:
        super().__init__()
        self.signer = Signer(keys, salt="huey")

    def _serialize(self, data: Any) -> bytes:
        if isinstance(data, Message):
            data = {name: value for name, value in data._asdict().items() if value is not None}
        return self.signer.sign(json.dumps(data, default=_plain, separators=(",", ":")))

    def _deserialize(self, data: bytes) -> Any:
        try:
            value = json.loads(self.signer.unsign(bytes(data)))
        except BadSignature as error:
            raise ValueError("a message in the queue was not signed with our SECRET_KEY") from error
        if isinstance(value, dict) and "name" in value:
            value["eta"] = datetime.fromisoformat(value["eta"]) if "eta" in value else None
            return Message(**value)
        return value


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    raise TypeError(f"a {type(value).__name__} cannot be an argument of a task: pass a row's id as text")
