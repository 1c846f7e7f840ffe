-- Where the log is and where the figures go. Change the address and add what your brokers ask for, such as
--   'properties.security.protocol' = 'SASL_SSL', 'properties.sasl.mechanism' = 'SCRAM-SHA-512',
--   'properties.sasl.jaas.config' = '…'
-- Fields that no figure needs are not read; a field that cannot be read is NULL.

CREATE TABLE interactions_log (
  tenant STRING,
  trace_id STRING,
  `version` STRING,
  arm STRING,
  rollout STRING,
  purpose STRING,
  user_id STRING,
  context ROW<segment STRING>,
  api STRING,
  messages ARRAY<ROW<`role` STRING>>,
  outcome STRING,
  started_at TIMESTAMP_LTZ(6),
  headers MAP<STRING, BYTES> METADATA VIRTUAL,
  arrival AS PROCTIME()
) WITH (
  'connector' = 'kafka',
  'topic' = 'ratchet.interactions.v1',
  'properties.bootstrap.servers' = 'kafka:9092',
  'properties.group.id' = 'ratchet-flink',
  'scan.startup.mode' = 'earliest-offset',
  'format' = 'json',
  'json.timestamp-format.standard' = 'ISO-8601',
  'json.ignore-parse-errors' = 'true'
);

CREATE TABLE feedback_log (
  tenant STRING,
  trace_id STRING,
  feedback_id STRING,
  revision INT,
  `type` STRING,
  `value` STRING,  -- a number, a text, an object or nothing, by the type
  dissatisfied BOOLEAN,
  user_id STRING,
  submitted_at TIMESTAMP_LTZ(6),
  anonymous BOOLEAN,
  by_receipt BOOLEAN,
  headers MAP<STRING, BYTES> METADATA VIRTUAL,
  logged_at TIMESTAMP_LTZ(3) METADATA FROM 'timestamp' VIRTUAL,
  log_offset BIGINT METADATA FROM 'offset' VIRTUAL,
  arrival AS PROCTIME()
) WITH (
  'connector' = 'kafka',
  'topic' = 'ratchet.feedback.v1',
  'properties.bootstrap.servers' = 'kafka:9092',
  'properties.group.id' = 'ratchet-flink',
  'scan.startup.mode' = 'earliest-offset',
  'format' = 'json',
  'json.timestamp-format.standard' = 'ISO-8601',
  'json.ignore-parse-errors' = 'true'
);

-- By name and order the figures of ratchet.quality.v1, over all partitions.
CREATE TABLE quality (
  `version` STRING,
  `window` STRING,
  `start` TIMESTAMP_LTZ(3),
  interactions BIGINT,
  errors BIGINT,
  interactions_with_feedback BIGINT,
  feedback BIGINT,
  positive BIGINT,
  negative BIGINT,
  corrections BIGINT,
  score_sum DOUBLE,
  score_count BIGINT,
  regenerated BIGINT,
  copied BIGINT,
  edited BIGINT,
  kept_sum DOUBLE,
  abandoned BIGINT,
  followed_up BIGINT,
  dissatisfied BIGINT,
  implied_sum DOUBLE,
  implied_count BIGINT,
  paired BIGINT,
  paired_implied DOUBLE,
  paired_explicit DOUBLE,
  paired_implied_squared DOUBLE,
  paired_explicit_squared DOUBLE,
  paired_product DOUBLE,
  turns BIGINT,
  sessions BIGINT,
  PRIMARY KEY (`version`, `window`, `start`) NOT ENFORCED
) WITH (
  'connector' = 'upsert-kafka',
  'topic' = 'ratchet-flink.quality.v1',
  'properties.bootstrap.servers' = 'kafka:9092',
  'key.format' = 'json',
  'value.format' = 'json',
  'value.json.timestamp-format.standard' = 'ISO-8601'
);

-- ratchet_feedback_total
CREATE TABLE feedback_total (
  `version` STRING,
  `type` STRING,
  feedback BIGINT,
  PRIMARY KEY (`version`, `type`) NOT ENFORCED
) WITH (
  'connector' = 'upsert-kafka',
  'topic' = 'ratchet-flink.feedback.v1',
  'properties.bootstrap.servers' = 'kafka:9092',
  'key.format' = 'json',
  'value.format' = 'json'
);

-- ratchet_satisfaction_sum_total and ratchet_satisfaction_count_total
CREATE TABLE satisfaction (
  `version` STRING,
  arm STRING,
  rollout STRING,
  segment STRING,
  score_sum DOUBLE,
  score_count BIGINT,
  PRIMARY KEY (`version`, arm, rollout, segment) NOT ENFORCED
) WITH (
  'connector' = 'upsert-kafka',
  'topic' = 'ratchet-flink.satisfaction.v1',
  'properties.bootstrap.servers' = 'kafka:9092',
  'key.format' = 'json',
  'value.format' = 'json'
);
