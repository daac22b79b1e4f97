"""The worker's work: what tasks run, on PostgreSQL, the index and the evaluator."""
