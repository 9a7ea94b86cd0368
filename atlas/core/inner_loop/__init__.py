"""The inner loop: part of an event loop's work, cut off from the rest and run in an exact order.

The code of a run is ordinary asyncio code in ordinary tasks of the user's own loop. While at least
one run is open on a loop, the loop's scheduling methods are wrapped (on that one object). What is
scheduled in the context of a run goes into the run's own queue, and this package empties that queue
first in, first out, until nothing is left: then the run is *quiet*. What else the loop has to do can
neither get in between nor change the order.

The world outside enters by *deliveries* only, one at a time, each when the run is quiet. Who admits
them, and writes down which came when, is the run's `Supervisor`; see `atlas.core.effects`. Timers
set inside are such deliveries too, and the loop's clock, read inside, stands at the moment of the
last one. So what a run does follows from its code and its deliveries alone.

Something else that wakes a run up (a future that a host's task resolves, a socket, a thread) is
*foreign*: it works, but nothing could repeat it, and the supervisor is told.

Guarantees: a run's callbacks run in the order in which they were scheduled; a delivery is handed in
only when none is left; tasks of a run have the same paths ("0", "0.0", "0.1", "0.1.0", children
counted as they are made) in every execution that gets the same deliveries, and hash alike, so that
sets of tasks iterate alike. Not covered: sets of other objects hashed by address or of strings,
threads, signals, cyclic garbage collection that ends generators.
"""

from atlas.core.inner_loop.loop import InnerLoop, turn_over
from atlas.core.inner_loop.place import (
    HERE,
    Delivered,
    Delivery,
    Place,
    Supervisor,
    here,
    outside_context,
)

__all__ = [
    "HERE",
    "Delivered",
    "Delivery",
    "InnerLoop",
    "Place",
    "Supervisor",
    "here",
    "outside_context",
    "turn_over",
]
