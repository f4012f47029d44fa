"""Model files: where does a model lie on disk, in whose names, and how is it read and written?"""
