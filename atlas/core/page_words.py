r"""What pages of a log say again and again: the dictionary they are compressed with.

A page is written at each boundary of an effect, so it is small, and most of it is keys and names that
every page has. Told to zlib beforehand (``zdict``) these take no room: pages are half as large. It is a
hint to the compressor and nothing else; words that are missing cost some bytes, words too many nothing.

To read a page without Atlas: ``zlib.decompressobj(zdict=WORDS).decompress(page[1:])``.
"""

from __future__ import annotations

from typing import Final

__all__ = ["WORDS"]

# Never change it: pages in the logs of users can only be read with the one they were written with. A
# better one is a second one, with a letter of its own in `atlas.core.message_pages`. What is most
# frequent stands last, where it costs least to refer to.
WORDS: Final = (
    # messages of applications: models, tools, tasks
    b'["tool.finished",1],["tool.called",1],["agent.turn_ended",1],["agent.turn_started",1],'
    b'["stream.tool_call",1],["stream.completed",1],["stream.started",1],["stream.token",1],'
    b'["task.queued",1],["task.assigned",1],["task.accepted",1],["task.completed",1],'
    b'["conversation.message_added",1],["search.performed",1],'
    b'{"call":{"arguments":"{\\"","id":"","name":""},"reply":"t-'
    b'{"completion":{"finish_reason":"tool_calls","finish_reason":"stop","model":"","parts":['
    b'{"$type":"tool_call","arguments":"{\\"","id":"","name":"{"$type":"text","text":"",'
    b'"provider":"","raw_finish_reason":null,"response_id":null,"usage":{"cache_write_tokens":null,'
    b'"cached_tokens":null,"input_tokens":,"output_tokens":,"reasoning_tokens":null}},'
    b'"conversation":"","reply":"","timing":{"attempts":1,"first_token":null,'
    b'"tokens_per_second":null,"total":0.0"agent":"","arguments":"{\\"","call":"t-","id":"c",'
    b'"task":"t-","tool":"{"call":"t-","content":"","outcome":"done"}'
    b'{"agent":"","calls":1,"reply":"t-","task":"t-","turn":"kind":"model.choice",'
    b'"request":"{\\"model\\":null,\\"provider\\":\\"","conversation":"","model":"","prompt":"",'
    b'"provider":"","reply":""{\\"provider\\":\\"\\",\\"request\\":{\\"after\\":,\\"model\\":\\"\\",'
    b'\\"said\\":[[\\""[\\"Several\\",[\\"ToolCallDelta\\",0,\\"\\",\\"\\",\\"{[\\"TextDelta\\",\\"'
    b'[\\"UsageDelta\\",{\\"input_tokens\\":,\\"output_tokens\\":}],[\\"Finished\\",\\"tool_calls\\",null]]"'
    # runs and effects
    b'"$mapping":[["$tuple":["$value":["atlas.core.,"$message":"{\\"failed":true,"what":"error",'
    b'"value":"{\\"type\\":\\"builtins:ValueError\\",\\"text\\":\\","args\\":["what":"timer","value":"0.'
    b'"what":"cancel"what":"chunk","what":"value"},"what":"end"}],"declared":"external",'
    b'"declared":"pure","arguments":{},"at":null,"mode":"record","name":"parent":null,'
    b'"program":null,"run":"["run.started",1],["run.seeded",1],["run.continued",1],["run.ended",1],'
    b'["effect.noted",1],["effect.cancelled",1],["effect.read",1],{"digest":","effect":"0:0",'
    b'"failed":false,"kind":","request":"{\\"","value":"{\\"$tuple\\":[\\""}],[1,0,1,'
    b'{"base":"","declared":"idempotent","digest":"","effect":"0.0:","kind":"","rest":"{\\"",'
    b'"shared":0}],[2,0,1,{"effect":"0:1","moment_ns":,"value":"\\"","what":"value"}],'
    # the page itself
    b'["effect.started",1],["effect.delivered",1]],"run":"","entries":[[0,0,'
    b'{"buses":[],"ids":["01a22062-","01a2-7-8000-00"],"names":[["'
)
