"""A search's parts: what is tried next, how a trial runs under Ray Tune, what is kept of it."""
