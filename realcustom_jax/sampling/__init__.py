"""Sampling: how does noise become a picture of the subject?"""
