"""The command `score`: pictures of any system by a published protocol."""
