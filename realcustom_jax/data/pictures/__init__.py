"""Pictures: how does a folder of your own pictures become a dataset?"""
