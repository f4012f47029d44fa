"""The stages that train a miniature from scratch: autoencoder, encoders, base, adapter, judge."""
