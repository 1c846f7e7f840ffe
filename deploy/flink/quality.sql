-- The aggregator's quality figures, feedback totals and capped satisfaction as one Flink job; docs/flink.md.
-- sql-client.sh -i tables.sql -f quality.sql

SET 'pipeline.name' = 'ratchet-quality';
SET 'table.local-time-zone' = 'UTC';
-- Two horizons of 30 days, as the aggregator keeps a row with feedback; in processing time.
SET 'table.exec.state.ttl' = '60 d';

-- A second record of a trace is a repeat.
CREATE TEMPORARY VIEW interactions AS
SELECT tenant, trace_id, `version`, arm, rollout, COALESCE(user_id, '') AS user_id,
       COALESCE(context.segment, '') AS segment, started_at,
       purpose = 'live' AS live,
       outcome IN ('server_error', 'timeout', 'crash') AS failed,
       messages[CARDINALITY(messages)].`role` = 'user' AS is_turn,
       ARRAY_CONTAINS(messages, CAST(ROW('assistant') AS ROW<`role` STRING>)) AS goes_on,
       purpose IN ('live', 'explicit') AND COALESCE(api, '') NOT IN ('embeddings', 'messages') AS counts
FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY tenant, trace_id ORDER BY arrival) AS place
  FROM interactions_log
  WHERE DECODE(headers['ce_type'], 'UTF-8') = 'ratchet.interaction.recorded.v1'
    AND tenant IS NOT NULL AND trace_id IS NOT NULL AND `version` IS NOT NULL AND started_at IS NOT NULL
)
WHERE place = 1;

-- Each revision with the type that its feedback began with. A vote needs no join and is not read.
CREATE TEMPORARY VIEW revisions AS
SELECT tenant, trace_id, feedback_id, COALESCE(revision, 0) AS revision, `type`, `value`, dissatisfied,
       COALESCE(user_id, '') AS user_id, COALESCE(anonymous, FALSE) AS anonymous,
       COALESCE(by_receipt, FALSE) AS by_receipt,
       TIMESTAMPDIFF(SECOND, TIMESTAMP '1970-01-01 00:00:00', CAST(submitted_at AS TIMESTAMP(6))) * 1000000
         + EXTRACT(MICROSECOND FROM CAST(submitted_at AS TIMESTAMP(6))) AS received_us,
       kind = 'ratchet.feedback.withdrawn.v1' AS withdrawn,
       kind = 'ratchet.signal.observed.v1' AS is_signal,
       logged_at, log_offset, arrival,
       FIRST_VALUE(`type`) OVER (PARTITION BY tenant, trace_id, feedback_id ORDER BY arrival) AS first_type
FROM (SELECT *, DECODE(headers['ce_type'], 'UTF-8') AS kind FROM feedback_log)
WHERE kind IN ('ratchet.feedback.submitted.v1', 'ratchet.feedback.withdrawn.v1', 'ratchet.signal.observed.v1')
  AND tenant IS NOT NULL AND trace_id IS NOT NULL AND feedback_id IS NOT NULL AND `type` IS NOT NULL
  AND submitted_at IS NOT NULL;

-- Without those that the aggregator calls a conflict of types, and with what each implies: thumbs 1 and 0, a
-- rating (r - 1) / 4, a correction 0; copy 1, edit_kept its share, regenerate, abandon and an objection 0.
CREATE TEMPORARY VIEW accepted AS
SELECT *,
  CASE
    WHEN `type` IN ('thumbs_up', 'copy') THEN 1E0
    WHEN `type` IN ('thumbs_down', 'text_correction', 'regenerate', 'abandon') THEN 0E0
    WHEN `type` = 'rating' THEN (CAST(`value` AS DOUBLE) - 1) / 4
    WHEN `type` = 'edit_kept' THEN CAST(`value` AS DOUBLE)
    WHEN `type` = 'follow_up' AND dissatisfied THEN 0E0
  END AS score
FROM revisions
WHERE `type` = first_type
   OR (`type` IN ('thumbs_up', 'thumbs_down', 'rating') AND first_type IN ('thumbs_up', 'thumbs_down', 'rating'));

-- The best of either order of revisions: the highest number (of one number the first body), the last received.
-- A second column to sort by would be planned as insert-only and keep what was withdrawn (FLINK-40368).
CREATE TEMPORARY VIEW best AS
SELECT * FROM (
  SELECT *, ROW_NUMBER() OVER (
    PARTITION BY tenant, trace_id, feedback_id, by_receipt
    ORDER BY CASE WHEN by_receipt THEN received_us ELSE CAST(revision AS BIGINT) END DESC) AS place
  FROM (SELECT tenant, trace_id, feedback_id, by_receipt, revision, received_us, withdrawn, is_signal, `type`,
               dissatisfied, score
        FROM accepted)
)
WHERE place = 1;

-- Of the two the one received later is the last word; at one time, the one ordered by receipt.
CREATE TEMPORARY VIEW last_words AS
SELECT * FROM (
  SELECT tenant, trace_id, feedback_id, withdrawn, is_signal, `type`, dissatisfied, score,
         ROW_NUMBER() OVER (PARTITION BY tenant, trace_id, feedback_id
                            ORDER BY received_us * 2 + CASE WHEN by_receipt THEN 1 ELSE 0 END DESC) AS latest
  FROM best
)
WHERE latest = 1 AND NOT withdrawn;

-- What is said of one answer. Sums of x and y are of 1/256, rounded half to even as in the aggregator: adding and
-- taking off 1.5 * 2^52 does that to a double.
CREATE TEMPORARY VIEW said AS
SELECT *,
  (implied_mean * 256 + 6755399441055744E0 - 6755399441055744E0) / 256 AS x,
  (explicit_mean * 256 + 6755399441055744E0 - 6755399441055744E0) / 256 AS y
FROM (
  SELECT tenant, trace_id,
    COUNT(*) FILTER (WHERE NOT is_signal) AS feedback,
    COUNT(*) FILTER (WHERE `type` IN ('thumbs_up', 'thumbs_down', 'rating') AND score >= 0.75) AS positive,
    COUNT(*) FILTER (WHERE `type` IN ('thumbs_up', 'thumbs_down', 'rating') AND score <= 0.25) AS negative,
    COUNT(*) FILTER (WHERE `type` = 'text_correction') AS corrections,
    SUM(score) FILTER (WHERE NOT is_signal) AS score_sum,
    COUNT(score) FILTER (WHERE NOT is_signal) AS score_count,
    COUNT(*) FILTER (WHERE `type` = 'regenerate') AS regenerated,
    COUNT(*) FILTER (WHERE `type` = 'copy') AS copied,
    COUNT(*) FILTER (WHERE `type` = 'edit_kept') AS edited,
    SUM(rounded) FILTER (WHERE `type` = 'edit_kept') AS kept_sum,
    COUNT(*) FILTER (WHERE `type` = 'abandon') AS abandoned,
    COUNT(*) FILTER (WHERE `type` = 'follow_up') AS followed_up,
    COUNT(*) FILTER (WHERE is_signal AND dissatisfied) AS dissatisfied,
    SUM(rounded) FILTER (WHERE is_signal) AS implied_sum,
    COUNT(score) FILTER (WHERE is_signal) AS implied_count,
    AVG(score) FILTER (WHERE is_signal) AS implied_mean,
    AVG(score) FILTER (WHERE NOT is_signal) AS explicit_mean
  FROM (SELECT *, (score * 256 + 6755399441055744E0 - 6755399441055744E0) / 256 AS rounded FROM last_words)
  GROUP BY tenant, trace_id
);

-- The first submission of each feedback, in the order of the log: later ones never change counters.
CREATE TEMPORARY VIEW first_said AS
SELECT * FROM (
  SELECT tenant, trace_id, feedback_id, `type`, is_signal, score, user_id, anonymous, logged_at, log_offset,
         ROW_NUMBER() OVER (PARTITION BY tenant, trace_id, feedback_id ORDER BY arrival) AS place
  FROM accepted
  WHERE NOT withdrawn
)
WHERE place = 1;

-- The first score of each answer, by whom and on which day it was given.
CREATE TEMPORARY VIEW scores AS
SELECT i.`version`, i.arm, i.rollout, i.segment, f.score, f.logged_at, i.tenant, i.trace_id,
       COALESCE(NULLIF(f.user_id, ''), NULLIF(i.user_id, '')) AS rater
FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY tenant, trace_id ORDER BY log_offset) AS first_of_answer
  FROM (SELECT * FROM first_said WHERE score IS NOT NULL AND NOT anonymous AND NOT is_signal)
) AS f
JOIN interactions AS i ON f.tenant = i.tenant AND f.trace_id = i.trace_id
WHERE f.first_of_answer = 1 AND i.live AND i.counts;

EXECUTE STATEMENT SET
BEGIN

INSERT INTO quality
SELECT i.`version`, w.name, TO_TIMESTAMP_LTZ(w.start_s, 0),
  COUNT(*),
  COUNT(*) FILTER (WHERE failed),
  COUNT(*) FILTER (WHERE feedback > 0),
  COALESCE(SUM(feedback), 0),
  COALESCE(SUM(positive), 0),
  COALESCE(SUM(negative), 0),
  COALESCE(SUM(corrections), 0),
  COALESCE(SUM(score_sum), 0),
  COALESCE(SUM(score_count), 0),
  COALESCE(SUM(regenerated), 0),
  COALESCE(SUM(copied), 0),
  COALESCE(SUM(edited), 0),
  COALESCE(SUM(kept_sum), 0),
  COALESCE(SUM(abandoned), 0),
  COALESCE(SUM(followed_up), 0),
  COALESCE(SUM(dissatisfied), 0),
  COALESCE(SUM(implied_sum), 0),
  COALESCE(SUM(implied_count), 0),
  COUNT(x * y),
  COALESCE(SUM(x) FILTER (WHERE y IS NOT NULL), 0),
  COALESCE(SUM(y) FILTER (WHERE x IS NOT NULL), 0),
  COALESCE(SUM(x * x) FILTER (WHERE y IS NOT NULL), 0),
  COALESCE(SUM(y * y) FILTER (WHERE x IS NOT NULL), 0),
  COALESCE(SUM(x * y), 0),
  COUNT(*) FILTER (WHERE is_turn),
  COUNT(*) FILTER (WHERE is_turn AND NOT goes_on)
FROM (
  SELECT *, TIMESTAMPDIFF(SECOND, TIMESTAMP '1970-01-01 00:00:00', CAST(started_at AS TIMESTAMP(6))) AS started_s
  FROM interactions WHERE counts
) AS i
LEFT JOIN said AS s ON i.tenant = s.tenant AND i.trace_id = s.trace_id
CROSS JOIN UNNEST(ARRAY[
  ROW('1m', started_s - MOD(started_s, 60)), ROW('5m', started_s - MOD(started_s, 300)),
  ROW('1h', started_s - MOD(started_s, 3600)), ROW('1d', started_s - MOD(started_s, 86400))]) AS w (name, start_s)
GROUP BY i.`version`, w.name, w.start_s;

INSERT INTO feedback_total
SELECT i.`version`, f.`type`, COUNT(*)
FROM first_said AS f
JOIN interactions AS i ON f.tenant = i.tenant AND f.trace_id = i.trace_id
GROUP BY i.`version`, f.`type`;

-- Three scores count of a person, rollout and day; of nobody known, one answer is a person.
INSERT INTO satisfaction
SELECT `version`, arm, rollout, segment, SUM(score), COUNT(*)
FROM (
  SELECT *, ROW_NUMBER() OVER (
    PARTITION BY tenant, rater IS NULL, COALESCE(rater, trace_id), rollout, CAST(logged_at AS DATE)
    ORDER BY logged_at) AS nth
  FROM scores
)
WHERE nth <= 3
GROUP BY `version`, arm, rollout, segment;

END;
