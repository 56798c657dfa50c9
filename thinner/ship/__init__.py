"""What leaves the house: bundles and model cards."""
