-- Quality windows that the aggregator and the twin have differently, one row of each; empty where they agree.
-- sql-client.sh -i tables.sql -f compare.sql

SET 'execution.runtime-mode' = 'batch';
SET 'sql-client.execution.result-mode' = 'tableau';
SET 'table.local-time-zone' = 'UTC';

CREATE TEMPORARY TABLE twin_log (
  `partition` INT,  -- none: the twin has all partitions in one
  log_offset BIGINT METADATA FROM 'offset' VIRTUAL
) WITH (
  'connector' = 'kafka',
  'topic' = 'ratchet-flink.quality.v1',
  'properties.bootstrap.servers' = 'kafka:9092',
  'scan.startup.mode' = 'earliest-offset',
  'scan.bounded.mode' = 'latest-offset',
  'format' = 'json',
  'json.timestamp-format.standard' = 'ISO-8601'
) LIKE quality (EXCLUDING CONSTRAINTS EXCLUDING OPTIONS);

CREATE TEMPORARY TABLE aggregator_log (
  `partition` INT,
  log_offset BIGINT METADATA FROM 'offset' VIRTUAL
) WITH (
  'connector' = 'kafka',
  'topic' = 'ratchet.quality.v1',
  'properties.bootstrap.servers' = 'kafka:9092',
  'scan.startup.mode' = 'earliest-offset',
  'scan.bounded.mode' = 'latest-offset',
  'format' = 'json',
  'json.timestamp-format.standard' = 'ISO-8601'
) LIKE quality (EXCLUDING CONSTRAINTS EXCLUDING OPTIONS);

-- The newest record of each key; both are compacted topics. The aggregator has one of each partition.
CREATE TEMPORARY VIEW newest AS
SELECT * FROM (
  SELECT *, ROW_NUMBER() OVER (PARTITION BY side, `version`, `window`, `start`, `partition`
                               ORDER BY log_offset DESC) AS place
  FROM (
    SELECT 'twin' AS side, * FROM twin_log
    UNION ALL
    SELECT 'aggregator' AS side, * FROM aggregator_log
  )
)
WHERE place = 1;

CREATE TEMPORARY VIEW figures AS
SELECT side, `version`, `window`, `start`, SUM(interactions) AS interactions, SUM(errors) AS errors,
  SUM(interactions_with_feedback) AS interactions_with_feedback, SUM(feedback) AS feedback,
  SUM(positive) AS positive, SUM(negative) AS negative, SUM(corrections) AS corrections,
  SUM(score_sum) AS score_sum, SUM(score_count) AS score_count, SUM(regenerated) AS regenerated,
  SUM(copied) AS copied, SUM(edited) AS edited, SUM(kept_sum) AS kept_sum, SUM(abandoned) AS abandoned,
  SUM(followed_up) AS followed_up, SUM(dissatisfied) AS dissatisfied, SUM(implied_sum) AS implied_sum,
  SUM(implied_count) AS implied_count, SUM(paired) AS paired, SUM(paired_implied) AS paired_implied,
  SUM(paired_explicit) AS paired_explicit, SUM(paired_implied_squared) AS paired_implied_squared,
  SUM(paired_explicit_squared) AS paired_explicit_squared, SUM(paired_product) AS paired_product,
  SUM(turns) AS turns, SUM(sessions) AS sessions
FROM newest
GROUP BY side, `version`, `window`, `start`;

-- What both have is there twice without the side.
SELECT * FROM (
  SELECT *, COUNT(*) OVER (
    PARTITION BY `version`, `window`, `start`, interactions, errors, interactions_with_feedback, feedback, positive,
      negative, corrections, score_sum, score_count, regenerated, copied, edited, kept_sum, abandoned, followed_up,
      dissatisfied, implied_sum, implied_count, paired, paired_implied, paired_explicit, paired_implied_squared,
      paired_explicit_squared, paired_product, turns, sessions) AS sides
  FROM figures
)
WHERE sides = 1
ORDER BY `version`, `window`, `start`, side;
