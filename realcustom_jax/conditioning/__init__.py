"""Conditioning: what do the prompt and the reference pictures become before a network sees them?"""
