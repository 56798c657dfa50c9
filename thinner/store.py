"""thinner.data.store, by the name that it had: for people's scripts that import from here. Our own code does not."""

from thinner.data.store import *  # noqa: F403 - all that it offers
