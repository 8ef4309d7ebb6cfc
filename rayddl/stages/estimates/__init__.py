"""What a stage will take, told before it runs: one module per kind, named like it.

Each has ``estimate(config, stages, outlook) -> Estimate``, and may have ``measure(config, stages, outlook)``,
which tries it out in a process of its own. Imports neither torch nor Ray.
"""
