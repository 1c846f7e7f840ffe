"""The Flink twin as a peer of the aggregator's benchmark."""

from __future__ import annotations

from pathlib import Path

from benchmarks.flink_peer import SINKS, counts_of, sink_topics, sql_command, tables


def test_the_job_reads_both_logs_to_their_present_end_from_the_brokers_of_the_run(
    tmp_path: Path,
) -> None:
    command = sql_command("127.0.0.1:9", tmp_path, ddl=tables(bounded=True), statements="SELECT 1;")
    assert command[1:] == ["-i", f"{tmp_path}/tables.sql", "-f", f"{tmp_path}/statements.sql"]
    written = (tmp_path / "tables.sql").read_text()
    assert written.count("'scan.bounded.mode' = 'latest-offset'") == 2
    assert written.count("'properties.bootstrap.servers' = '127.0.0.1:9'") == 5
    assert "kafka:9092" not in written
    assert "scan.bounded.mode" not in tables(bounded=False)


def test_every_topic_that_the_job_writes_is_made() -> None:
    written = tables(bounded=False)
    assert all(f"'topic' = '{name}'" in written for name in SINKS)
    assert written.count("'connector' = 'upsert-kafka'") == len(sink_topics(4)) == len(SINKS)


def test_days_are_summed_and_shorter_windows_are_not() -> None:
    quality = [
        {"version": "v1", "window": "1d", "start": "1", "interactions": 3},
        {"version": "v1", "window": "1d", "start": "2", "interactions": 4},
        {"version": "v1", "window": "1h", "start": "1", "interactions": 3},
    ]
    feedback = [{"version": "v1", "type": "thumbs_up", "feedback": 2}]
    assert counts_of(quality, feedback) == {"v1": 7, "v1/thumbs_up": 2}
