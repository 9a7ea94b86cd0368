"""Put Atlas into a FastAPI application: answers stream to the browser, the bus can be watched live.

    python examples/03_host_app.py                    # in a terminal: open http://127.0.0.1:8003
    python examples/03_host_app.py < /dev/null        # scripted: asks itself one question

A browser that goes away in the middle of an answer cancels that answer. Where the web server owns
the process (`uvicorn module:web`), start Atlas in FastAPI's lifespan: docs/how-to/stream-to-a-browser.md.
Needs `pip install fastapi uvicorn`.
"""

import argparse
import asyncio
import json
import sys
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from pathlib import Path

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
except ModuleNotFoundError as missing:
    sys.exit(f"This example needs {missing.name}: run `pip install fastapi uvicorn`.")

from atlas import Atlas, AtlasError, Message
from atlas.core.schema import encode_fields

PAGE = Path(__file__).with_name("03_page.html")


def server_sent(data: object, event: str = "") -> str:
    """Return one server-sent event; JSON keeps line breaks out of its data."""
    return (f"event: {event}\n" if event else "") + f"data: {json.dumps(data)}\n\n"


def make_web(atlas: Atlas) -> FastAPI:
    """Return the web application around an Atlas that is running."""
    web = FastAPI()

    @web.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return PAGE.read_text(encoding="utf-8")

    @web.exception_handler(AtlasError)
    async def refused(_: Request, error: AtlasError) -> JSONResponse:
        return JSONResponse({"error": type(error).__name__, "message": str(error)}, 400)

    @web.get("/chat")
    async def chat(question: str) -> StreamingResponse:
        reply = atlas.chat(question, max_tokens=120)

        async def events() -> AsyncIterator[str]:
            async with reply:  # a browser that goes away closes this generator
                try:
                    async for token in reply:
                        yield server_sent(token)
                    yield server_sent(reply.finish_reason, event="end")
                except AtlasError as error:
                    yield server_sent(str(error), event="problem")

        return StreamingResponse(events(), media_type="text/event-stream")

    @web.get("/bus")
    async def bus() -> StreamingResponse:
        async def events() -> AsyncIterator[str]:
            # A browser that cannot keep up loses old events and never slows an answer down.
            async with atlas.bus.stream("**", overflow="drop_oldest") as messages:
                async for event in messages:
                    yield f"data: {describe(event)}\n\n"

        return StreamingResponse(events(), media_type="text/event-stream")

    return web


def describe(event: Message) -> str:
    """Return one line about an event."""
    return f"{event.meta.sequence:>5}  {event.meta.name:<28}{encode_fields(event).decode()[:120]}"


async def serve(options: argparse.Namespace) -> None:
    """Run Atlas, and the web application inside it, until Ctrl-C; scripted: for one question."""
    interactive = sys.stdin.isatty()
    async with Atlas(provider=options.provider, model=options.model) as atlas:
        config = uvicorn.Config(
            make_web(atlas),
            port=options.port if interactive else 0,  # 0: any free port
            log_level="info" if options.verbose else "error",
            timeout_graceful_shutdown=1,  # the bus page's stream never ends by itself
        )
        server = uvicorn.Server(config)
        if interactive:
            print(f"Open http://127.0.0.1:{options.port}; Ctrl-C ends.")
            await server.serve()
            return
        serving = asyncio.create_task(server.serve())
        while not server.started and not serving.done():
            await asyncio.sleep(0.01)
        if server.started:
            port = server.servers[0].sockets[0].getsockname()[1]
            await asyncio.to_thread(ask, f"http://127.0.0.1:{port}/chat?question=")
            server.should_exit = True
        await serving


def ask(url: str) -> None:
    """Ask one question as a browser does, and print what the server sends, as it comes."""
    url += urllib.parse.quote("Explain event sourcing in one line.")
    print(f"GET {url}\n")
    with urllib.request.urlopen(url) as lines:
        for line in lines:
            print(line.decode().rstrip(), flush=True)


def main() -> int:
    """Read the options and serve; errors become one sentence."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--provider", help="anthropic, openai, ollama, local or scripted")
    parser.add_argument("--model", help="the provider's name of a model, or a GGUF file")
    parser.add_argument("--port", type=int, default=8003)
    parser.add_argument("--verbose", action="store_true", help="log requests")
    options = parser.parse_args()
    try:
        asyncio.run(serve(options))
    except AtlasError as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print()
    return 0


if __name__ == "__main__":
    sys.exit(main())
