"""The registry's rules, free of transports and databases."""
