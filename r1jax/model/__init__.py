"""Architectures. `make(config)` turns a config into a `types.Model`; nothing else leaves here."""
from r1jax.model.mla import MLA
from r1jax.model.moe import MoE
from r1jax.model.transformer import Config, head_norm, make, size, whole_norm

__all__ = ['Config', 'MLA', 'MoE', 'head_norm', 'make', 'size', 'whole_norm']
