"""The network, the bundle it travels in, and the engine that runs it."""
