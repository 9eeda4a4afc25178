"""Architectures. `make(config)` turns a config into a `types.Model`; nothing else leaves here."""
from r1jax.model.transformer import Config, make

__all__ = ['Config', 'make']
