"""Every notebook's other half: its figures and its claims with their verdicts."""
