"""Side effects as values: performed, recorded, replayed exactly.

Mark a function with `effect`; open a `RunContext`; what happens inside can be repeated to the byte without
the world outside. The rule that makes it exact is in `atlas.core.inner_loop`.
"""

from atlas.core.effect_layers import EffectCall
from atlas.core.effects.codec import REDACTED
from atlas.core.effects.doubt import Decision
from atlas.core.effects.entries import (
    Declared,
    EffectCancelled,
    EffectDelivered,
    EffectNoted,
    EffectRead,
    EffectStarted,
    Entry,
    Journal,
    MemoryJournal,
    RunContinued,
    RunSeeded,
    before_pending,
    cut_at,
    effective,
    rebuild_requests,
    resume_point,
)
from atlas.core.effects.perform import (
    Effect,
    EffectStream,
    current_effect,
    current_run,
    effect,
    hide,
    monotonic,
    now,
    now_ns,
    perform,
    random,
    stream,
    uuid,
)
from atlas.core.effects.run import InDoubt, Mode, RunContext, Skip

__all__ = [
    "REDACTED",
    "Decision",
    "Declared",
    "Effect",
    "EffectCall",
    "EffectCancelled",
    "EffectDelivered",
    "EffectNoted",
    "EffectRead",
    "EffectStarted",
    "EffectStream",
    "Entry",
    "InDoubt",
    "Journal",
    "MemoryJournal",
    "Mode",
    "RunContext",
    "RunContinued",
    "RunSeeded",
    "Skip",
    "before_pending",
    "current_effect",
    "current_run",
    "cut_at",
    "effect",
    "effective",
    "hide",
    "monotonic",
    "now",
    "now_ns",
    "perform",
    "random",
    "rebuild_requests",
    "resume_point",
    "stream",
    "uuid",
]
