"""The contracts between services: topics, event models and the tables generated from them."""
