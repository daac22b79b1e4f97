"""What the gateway decides by itself: values and pure functions, without sockets."""
