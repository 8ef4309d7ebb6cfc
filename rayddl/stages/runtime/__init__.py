"""The interface to Ray: start and stop, resources of workers, and distribution of units of work."""
