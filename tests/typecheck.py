"""The checker of shapes and types while tests run: beartype, for which a whole number is a number, as Python has it."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
