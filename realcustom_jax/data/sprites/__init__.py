"""Sprites: what does the painted world look like, and how does it become a dataset?"""
