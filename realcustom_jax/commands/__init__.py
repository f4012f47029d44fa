"""The commands `realcustom` (in a clone sample.py) and `realcustom-train` (train.py)."""
