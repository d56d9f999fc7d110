"""A shop where one can register."""
