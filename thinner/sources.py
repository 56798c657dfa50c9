"""thinner.data.sources, by the name that it had: for people's scripts that import from here. Our own code does not."""

from thinner.data.sources import *  # noqa: F403 - all that it offers
