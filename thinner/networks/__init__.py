"""Networks by name, their weights, and what they are on disk: checkpoints and exports."""
