"""Smaller: criteria, cuts, rounds and masks; and 8 bits."""
