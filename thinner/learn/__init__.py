"""Training: the loop, losses, teachers' signals, unequal classes, labels that the network gives itself."""
