"""Read model of feedback: a disposable SQLite that each replica folds from the topics."""
