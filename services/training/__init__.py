"""Training: dataset snapshots, trainers in their own process, evaluation, release gate, records."""
