"""What is asked and what came out: settings, plan, stages, store."""
