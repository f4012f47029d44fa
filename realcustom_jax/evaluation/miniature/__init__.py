"""Scores of a miniature by the judge that came with it: methods side by side, on subjects that training never saw."""
