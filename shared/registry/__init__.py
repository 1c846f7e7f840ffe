"""The model registry and the rollout state: folds of Kafka topics, viewed through Redis."""
