"""Definitions, plans and runs. Names no method, and starts only what a plan asks for."""
