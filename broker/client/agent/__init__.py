"""The agent: endpoints on loopback through which tools that know nothing of the broker read from it."""
