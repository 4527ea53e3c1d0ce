"""The ground floor: what all other folders use, private to this library."""
