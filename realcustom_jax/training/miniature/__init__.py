"""The miniature: which stages train a whole small model from scratch?"""
