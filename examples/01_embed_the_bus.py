"""Put the event bus into a program of your own: no framework, no loop needed, nothing global.

    python examples/01_embed_the_bus.py            # --verbose also prints every message

Two programs: a plain script with threads, and an asyncio program. Read from top to bottom.
"""

import argparse
import asyncio
import threading

from atlas import Command, Event, EventBus, message
from atlas.core.event_bus import HandlerFailed


@message("order.placed")
class OrderPlaced(Event):
    """A customer placed an order."""

    order_id: str
    total: float


@message("stock.reserved")
class StockReserved(Event):
    """The goods of an order are put aside."""

    order_id: str


@message("price.asked")
class PriceAsked(Command[float]):
    """Somebody wants to know a price; the answer is a float."""

    item: str


def threaded_script(*, verbose: bool) -> None:
    """Publish from threads: no event loop anywhere."""
    print("A script with threads")
    with EventBus(name="shop") as bus:
        if verbose:
            bus.subscribe("**", lambda item: print(f"    #{item.meta.sequence} {item}"), priority=9)

        @bus.on(OrderPlaced, where=lambda event: event.total > 100)
        def review(event: OrderPlaced) -> None:
            print(f"  review {event.order_id}: {event.total} is a lot")

        @bus.on(OrderPlaced)
        def reserve(event: OrderPlaced) -> None:
            bus.publish(StockReserved(order_id=event.order_id))  # linked to its cause

        @bus.on(OrderPlaced)
        async def confirm(event: OrderPlaced) -> None:  # async: runs on a loop of the bus's own
            await asyncio.sleep(0.01)
            print(f"  confirmed {event.order_id} in thread {threading.current_thread().name}")

        @bus.on("order.*")
        def broken(_: Event) -> None:
            raise ValueError("the printer is out of paper")

        @bus.on(HandlerFailed)
        def tell(failure: HandlerFailed) -> None:
            print(f"  a handler failed, the others ran: {failure.error}")

        def customer(order_id: str, total: float) -> None:
            receipt = bus.publish(OrderPlaced(order_id=order_id, total=total), run=order_id)
            receipt.wait(5)  # returns when all handlers are through

        for order_id, total in (("A1", 9.5), ("B2", 250.0)):
            thread = threading.Thread(target=customer, args=(order_id, total))
            thread.start()
            thread.join()

        print("  What caused what in run B2:")
        print("   ", bus.tree("B2").replace("\n", "\n    "))


async def asyncio_program(*, verbose: bool) -> None:
    """Await handlers, iterate over messages, ask and answer."""
    print("An asyncio program")
    async with EventBus(name="desk") as bus:
        if verbose:
            bus.subscribe("**", lambda item: print(f"    #{item.meta.sequence} {item}"), priority=9)

        @bus.on(OrderPlaced)
        async def handle(event: OrderPlaced) -> None:
            await asyncio.sleep(0.01)
            print(f"  handled {event.order_id}")

        await bus.publish(OrderPlaced(order_id="C3", total=1.0))
        print("  published, and every handler is through")

        async with bus.stream("order.*", capacity=2) as orders:  # full: publishers who await wait
            publishing = asyncio.create_task(publish_three(bus))
            async for order in orders:
                print(f"  read {order.order_id}")
                if order.order_id == "order 2":
                    break
        await publishing

        bus.subscribe(PriceAsked, lambda asked: bus.reply(asked, 2.5))
        price = await bus.request(PriceAsked(item="tea"), timeout=1)
        print(f"  the price of tea is {price}")
        print(f"  {bus.explain(PriceAsked)}")


async def publish_three(bus: EventBus) -> None:
    for number in range(3):
        await bus.publish(OrderPlaced(order_id=f"order {number}", total=1.0))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="The bus alone, in a program of your own.")
    parser.add_argument("--verbose", action="store_true", help="print every message")
    options = parser.parse_args()
    threaded_script(verbose=options.verbose)
    asyncio.run(asyncio_program(verbose=options.verbose))
