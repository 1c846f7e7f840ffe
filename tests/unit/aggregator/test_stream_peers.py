"""The peers of the aggregator's benchmark do its work: their counts are those of the log."""

from __future__ import annotations

import json

import pytest

from benchmarks.aggregator import events
from benchmarks.aggregator_peers import BROKEN, in_log
from benchmarks.stream_peers import OUTPUTS, PeerJoin
from shared.contracts.topics import DEAD_LETTERS, EXAMPLES, FEEDBACK, INTERACTIONS


def test_a_peers_join_counts_what_the_log_has(capsys: pytest.CaptureFixture[str]) -> None:
    records, total = events(30, 0.5)
    said = sum(record.topic == FEEDBACK for record in records)
    join, rows, written = PeerJoin(total), {}, dict.fromkeys(OUTPUTS, 0)
    todo = [(record.topic, record.key, record.headers, record.value) for record in records]
    todo.insert(3, (INTERACTIONS, "broken", records[0].headers, BROKEN))
    for topic, key, headers, value in todo:
        assert value is not None
        row, outputs = join.fold(topic, headers, value, 0, rows.get(key))
        rows[key] = row
        for output in outputs:
            written[output.topic] += 1
            if output.topic.endswith("rated.v1"):
                todo.append((output.topic, output.key, tuple(output.headers), output.value))
    mark, folded, *_, counts = capsys.readouterr().out.rstrip("\n").split("\t")
    assert (mark, int(folded)) == ("seen", total)
    assert json.loads(counts) == in_log(records)
    assert 0 < said == written[EXAMPLES]
    assert written[DEAD_LETTERS] == 1
