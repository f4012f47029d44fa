"""Published backbones: how is an adapter trained for a backbone that others trained?"""
