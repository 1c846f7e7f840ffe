"""The router, with the processor time that each answer waits for noted, for `benchmarks.router_hotpath`.

The program is a text, so that it can run the router of another checkout. One request at a time has to be
under way. On its end it writes to the file that its argument names, as JSON, microseconds of each request:
`to_engine`, from the request's arrival to its being written to the engine; `whole` and `first`, from the
engine's whole answer, or what brought a stream's first token, to the first byte written to the client.
"""

from __future__ import annotations

import textwrap

TIMED_ROUTER = textwrap.dedent(
    """
    import json, sys
    from collections import defaultdict
    from pathlib import Path
    from time import thread_time_ns
    from services.router.__main__ import main
    from services.router.engine_connection import EngineConnection
    from shared.http.head_limit import HeadLimitProtocol
    from shared.http.response_writes import CoalescingCycle

    found = defaultdict(list)
    asked = answered = 0

    def around(owner, name, before=None, after=None):
        inner = getattr(owner, name)

        def outer(one, *args, **named):
            if before is not None:
                before()
            result = inner(one, *args, **named)
            if after is not None:
                after(one)
            return result

        setattr(owner, name, outer)

    def request_came():
        global asked
        asked = thread_time_ns()

    def request_left(_):
        global answered
        found["to_engine"].append((thread_time_ns() - asked) / 1000)
        answered = 0

    def answer_came():
        global answered
        if asked:
            answered = thread_time_ns()

    def answer_left(cycle):
        global asked, answered
        if answered:
            kind = "first" if cycle.chunked_encoding else "whole"
            found[kind].append((thread_time_ns() - answered) / 1000)
            asked = answered = 0

    around(HeadLimitProtocol, "data_received", before=request_came)
    around(EngineConnection, "send", after=request_left)
    around(EngineConnection, "data_received", before=answer_came)
    around(CoalescingCycle, "_piece", after=answer_left)
    path = Path(sys.argv.pop())
    try:
        main()
    finally:
        path.write_text(json.dumps(found))
    """
)
