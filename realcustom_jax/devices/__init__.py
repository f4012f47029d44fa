"""Devices: where do arrays and programs lie, and what do they cost there?"""
