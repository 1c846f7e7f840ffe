"""Training: dataset snapshots, trainers in a process of their own, evaluation, the gate, records."""
