"""Training: what is minimised, in which loop, and what of it survives a stop?"""
