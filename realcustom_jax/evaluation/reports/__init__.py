"""What scores are told by: JSON, CSV, a table beside published figures, and the best and the worst pictures."""
