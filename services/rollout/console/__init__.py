"""Console: pages for operators, and the endpoints that they ask beside those of rollouts."""
