"""Data: the painted sprite world, folders of your own pictures, and the reader of their datasets."""
