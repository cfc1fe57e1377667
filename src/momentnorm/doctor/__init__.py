"""Doctor: the backend that takes a call on this machine, and the reason."""
