"""The HTTP face of the broker: parse, call a use case, render. It decides nothing."""
