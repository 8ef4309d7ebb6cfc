"""Training a network: one step, a student on a distilled set, and how well it does."""
