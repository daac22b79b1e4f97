"""The registry's transports: thin, both over the same service."""
