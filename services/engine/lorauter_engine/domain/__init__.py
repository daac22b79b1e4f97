"""Values and rules of generation: no sockets, no model."""
