"""What the type checker says about programs that use the bus: handlers and answers are checked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]

PROGRAM = """
from typing import assert_type

from atlas.core.event_bus import EventBus, MessageStream, Receipt, Subscription
from atlas.core.messages import Command, Event, message


@message("order.placed")
class OrderPlaced(Event):
    order_id: str


@message("price.asked")
class PriceAsked(Command[float]):
    item: str


bus = EventBus()


@bus.on(OrderPlaced, where=lambda event: event.order_id != "")
def plain(event: OrderPlaced) -> None: ...


@bus.on(OrderPlaced)
async def asynchronous(event: OrderPlaced) -> None: ...


@bus.on(OrderPlaced)
def base(event: Event) -> None: ...


@bus.on("order.*")
def by_pattern(event: OrderPlaced) -> None: ...


@bus.on(OrderPlaced)  # WRONG
def other(event: PriceAsked) -> None: ...


bus.subscribe(OrderPlaced, lambda event: event.missing)  # WRONG
bus.subscribe((OrderPlaced, PriceAsked), lambda item: item.message_name)
assert_type(bus.subscribe(OrderPlaced, plain), Subscription[OrderPlaced])
assert_type(bus.publish(OrderPlaced(order_id="A")), Receipt[OrderPlaced])
bus.publish("text")  # WRONG


async def main() -> None:
    assert_type(await bus.wait_for(OrderPlaced, where=lambda e: e.order_id == "A"), OrderPlaced)
    assert_type(await bus.request(PriceAsked(item="tea")), float)
    assert_type((await bus.publish(OrderPlaced(order_id="A"))).message, OrderPlaced)
    assert_type(bus.stream(OrderPlaced), MessageStream[OrderPlaced])
    async with bus.stream(OrderPlaced) as events:
        async for event in events:
            assert_type(event, OrderPlaced)
    bus.reply(PriceAsked(item="tea"), 2.5)
    bus.reply(PriceAsked(item="tea"), "much")  # WRONG
"""


def test_mypy_checks_handlers_answers_and_streams(tmp_path):
    program = tmp_path / "program.py"
    program.write_text(PROGRAM)
    checked = subprocess.run(
        [
            *(sys.executable, "-m", "mypy", "--strict", "--config-file="),
            *("--cache-dir", str(tmp_path / "cache"), str(program)),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    found = {
        int(line.split(":")[1]) for line in checked.stdout.splitlines() if "program.py" in line
    }
    wrong = {number for number, line in enumerate(PROGRAM.splitlines(), 1) if "# WRONG" in line}

    assert found == wrong, checked.stdout
