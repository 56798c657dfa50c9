"""Pictures: where they come from, the prepared store, what is done to them by hand, and views of them."""
