"""Results of the batch worker, followed on their topic; those of shadow requests are kept until a
rollout has counted them.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable

from services.rollout.shadow import ShadowResult
from services.rollout.state import RolloutState
from shared.contracts.events.generations import GenerationFinished
from shared.contracts.topics import GENERATION_RESULTS
from shared.kafka.envelope import decode, models_by_type
from shared.kafka.log import EventLog, Record
from shared.registry.follow import Follower

NEWEST = 1_000
"""Results of a partition that are read at a start: those that came while no controller looked."""
MAX_ROLLOUTS = 64
MAX_RESULTS = 2_000
"""Kept for each rollout; a leader counts them every second, a standby only keeps the newest."""
MAX_REQUESTS = 10_000
"""Request ids remembered, as a worker that was killed makes some answers again."""

_MODELS = models_by_type(GenerationFinished)


class ShadowResults(Follower):
    """The newest results by rollout, each request's first one only."""

    def __init__(
        self,
        event_log: EventLog,
        evaluated: Callable[[GenerationFinished], None] = lambda _: None,
    ) -> None:
        """`evaluated` takes the results of evaluations."""
        self._evaluated = evaluated
        self._waiting: OrderedDict[str, deque[ShadowResult]] = OrderedDict()
        self._seen: OrderedDict[str, None] = OrderedDict()
        super().__init__(event_log, (GENERATION_RESULTS,), self._take, newest=NEWEST)

    def of(self, state: RolloutState) -> tuple[ShadowResult, ...]:
        """Results of a rollout that its tally lacks; those that it has are dropped."""
        waiting = self._waiting.get(state.rollout_id)
        tally = state.shadow
        if not waiting or tally is None:
            return ()
        found = tuple(result for result in waiting if tally.lacks(result[0]))
        self._waiting[state.rollout_id] = deque(found, maxlen=MAX_RESULTS)
        return found

    def _take(self, record: Record) -> None:
        result = decode(record.headers, record.value, _MODELS)
        assert isinstance(result, GenerationFinished)
        if result.purpose == "evaluation":
            if result.encrypted is not None:  # the asker was erased meanwhile
                result = result.model_copy(update={"outcome": "expired"})
            self._evaluated(result)
            return
        if result.request_id in self._seen:
            return
        self._seen[result.request_id] = None
        if len(self._seen) > MAX_REQUESTS:
            self._seen.popitem(last=False)
        queue = self._waiting.setdefault(result.batch_id, deque(maxlen=MAX_RESULTS))
        queue.append((record, result))
        self._waiting.move_to_end(result.batch_id)
        if len(self._waiting) > MAX_ROLLOUTS:
            self._waiting.popitem(last=False)
