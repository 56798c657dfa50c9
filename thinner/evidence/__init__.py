"""What numbers prove: tests and claims; and what people are shown of it: page, Markdown, README."""
