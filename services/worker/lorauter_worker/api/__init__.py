"""The worker's own HTTP: health, readiness and metrics."""
