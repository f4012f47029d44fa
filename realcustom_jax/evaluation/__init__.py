"""How good pictures are: the miniature by its own judge (`miniature`), published benchmarks by published protocols."""
