"""The worker's adapters of its ports."""
