"""Model registry and routing state: folds of Kafka topics, with views in Redis."""
