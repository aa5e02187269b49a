"""hopecli: train, evaluate and adapt action-conditioned latent world models."""

__version__ = "0.1.0"
