"""What exported networks run in, a file for each: protocol.py says what such a file has, catalogue.py lists them."""
