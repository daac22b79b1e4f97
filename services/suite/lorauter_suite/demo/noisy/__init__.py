"""A noisy pool of any size on the demo base, from seeds: good adapters are rare, and the truth is known."""
