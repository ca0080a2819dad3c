"""A mail server far away: TLS, and half a round trip of delay each way, in front of a nearby sink.

`python -m benchmarks.far PORT SINK_PORT CERTIFICATE MILLISECONDS`.
"""

from __future__ import annotations

import asyncio
import ssl
import sys
from asyncio import StreamReader, StreamWriter
from contextlib import suppress


async def main() -> None:
    port, sink_port, certificate, milliseconds = sys.argv[1:]
    round_trip = float(milliseconds) / 1000
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)

    async def decrypt(reader: StreamReader, writer: StreamWriter) -> None:
        await join(reader, writer, int(sink_port), 0)

    inner = await asyncio.start_server(decrypt, "127.0.0.1", 0, ssl=context)
    inner_port: int = inner.sockets[0].getsockname()[1]

    async def delay(reader: StreamReader, writer: StreamWriter) -> None:
        # Connecting takes a round trip too, unlike on loopback.
        await asyncio.sleep(round_trip)
        await join(reader, writer, inner_port, round_trip / 2)

    await (await asyncio.start_server(delay, "127.0.0.1", int(port))).serve_forever()


async def join(reader: StreamReader, writer: StreamWriter, port: int, seconds: float) -> None:
    """Forward what either side sends, `seconds` later."""
    there, back = await asyncio.open_connection("127.0.0.1", port)
    await asyncio.gather(pump(reader, back, seconds), pump(there, writer, seconds))


async def pump(source: StreamReader, sink: StreamWriter, seconds: float) -> None:
    loop = asyncio.get_running_loop()
    with suppress(OSError):
        while chunk := await source.read(65536):
            loop.call_later(seconds, sink.write, chunk)
    loop.call_later(seconds, sink.close)


if __name__ == "__main__":
    with suppress(KeyboardInterrupt):
        asyncio.run(main())
