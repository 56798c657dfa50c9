"""Files: whole or not there, arrays read without a pickle, JSON and YAML that say which line is wrong."""
