"""What the engine does with requests: residency of adapters, batching, scoring."""
