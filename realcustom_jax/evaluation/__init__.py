"""The honest score: a judge trained on painted pictures, metrics, and the report."""
