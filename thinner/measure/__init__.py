"""Numbers of one candidate: scores, costs, and whether what was saved is what was meant."""
