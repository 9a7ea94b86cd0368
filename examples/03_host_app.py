"""Put Atlas into a FastAPI application: answers stream to the browser, the bus can be watched live.

    python examples/03_host_app.py                    # in a terminal: open http://127.0.0.1:8003
    python examples/03_host_app.py < /dev/null        # scripted: asks itself one question

The web application owns the process; Atlas starts and stops with it. A browser that goes away in
the middle of an answer cancels that answer: look at the bus page while you close the chat page.
Needs `pip install fastapi uvicorn`.
"""

import argparse
import asyncio
import json
import sys
import urllib.parse
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse

from atlas import Atlas, AtlasError, Message
from atlas.core.schema import to_json

PAGE = """<!doctype html><meta charset="utf-8"><title>Atlas</title>
<style>body{font:16px/1.5 system-ui;max-width:44rem;margin:3rem auto;padding:0 1rem}
form{display:flex;gap:.5rem}input{flex:1;font:inherit;padding:.5rem}button{font:inherit}
#answer{min-height:6rem;white-space:pre-wrap}#bus{font:12px/1.4 monospace;color:#567;height:16rem;
overflow:auto;border-top:1px solid #ccc;white-space:pre-wrap}.error{color:#b00}</style>
<h1>Ask the model</h1><form><input name="question" value="Explain event sourcing in one line."
autofocus><button>Ask</button></form><p id="answer"></p><h2>The bus</h2><div id="bus"></div>
<script>
const answer = document.getElementById("answer"), bus = document.getElementById("bus");
document.querySelector("form").onsubmit = (submit) => {
  submit.preventDefault(); answer.textContent = ""; answer.className = "";
  const question = encodeURIComponent(submit.target.question.value);
  const stream = new EventSource("/chat?question=" + question);
  stream.onmessage = (event) => answer.textContent += JSON.parse(event.data);
  stream.addEventListener("end", () => stream.close());
  stream.addEventListener("problem", (event) => {
    stream.close(); answer.className = "error"; answer.textContent += JSON.parse(event.data); });
};
new EventSource("/bus").onmessage = (event) => {
  bus.append(event.data + "\\n"); bus.scrollTop = bus.scrollHeight; };
</script>"""


def server_sent(data: object, event: str = "") -> str:
    """Return one server-sent event; JSON keeps line breaks out of its data."""
    return (f"event: {event}\n" if event else "") + f"data: {json.dumps(data)}\n\n"


def make_web(atlas: Atlas) -> FastAPI:
    """Return the web application around an Atlas that starts and stops with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        async with atlas:
            yield

    web = FastAPI(lifespan=lifespan)

    @web.get("/", response_class=HTMLResponse)
    async def page() -> str:
        return PAGE

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
    return f"{event.meta.sequence:>5}  {event.meta.name:<28}{to_json(event)[:120]}"


async def ask_itself(server: uvicorn.Server) -> None:
    """Start the server, ask one question like a browser does, print what comes back, stop."""
    serving = asyncio.create_task(server.serve())
    while not server.started and not serving.done():
        await asyncio.sleep(0.01)
    if server.started:
        port = server.servers[0].sockets[0].getsockname()[1]
        question = urllib.parse.quote("Explain event sourcing in one line.")
        url = f"http://127.0.0.1:{port}/chat?question={question}"
        print(f"GET {url}\n")
        await asyncio.to_thread(print_lines, url)
        server.should_exit = True
    await serving


def print_lines(url: str) -> None:
    """Print what a server sends, line by line, as it comes."""
    with urllib.request.urlopen(url) as lines:
        for line in lines:
            print(line.decode().rstrip(), flush=True)


def main() -> int:
    """Read the options and serve."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--provider", help="anthropic, openai, ollama, local or scripted")
    parser.add_argument("--model", help="the provider's name of a model, or a GGUF file")
    parser.add_argument("--port", type=int, default=8003)
    parser.add_argument("--verbose", action="store_true", help="log requests")
    options = parser.parse_args()
    interactive = sys.stdin.isatty()
    config = uvicorn.Config(
        make_web(Atlas(provider=options.provider, model=options.model)),
        port=options.port if interactive else 0,  # 0: any free port
        log_level="info" if options.verbose else "error",
        timeout_graceful_shutdown=1,  # the bus page's stream never ends by itself
    )
    if interactive:
        print(f"Open http://127.0.0.1:{options.port}; Ctrl-C ends.")
        uvicorn.Server(config).run()
    else:
        asyncio.run(ask_itself(uvicorn.Server(config)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
