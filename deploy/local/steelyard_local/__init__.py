"""Kafka, Postgres and the five services as plain child processes, for `make demo`, `make dev` and the tests."""
