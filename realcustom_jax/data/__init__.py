"""Data: the painted sprite world, its dataset and the loader."""
