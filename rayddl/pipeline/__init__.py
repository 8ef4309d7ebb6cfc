"""Floor 3: definitions, plans and runs. Knows no method and starts nothing that a plan does not ask for."""
