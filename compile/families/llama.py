"""Llama and what follows its blueprint: SmolLM2, TinyLlama, Mistral.

Pre-norm decoder with RMSNorm, rotary positions, grouped-query attention and a gated SiLU
feed-forward (Touvron et al., 2023, arXiv:2302.13971; Ainslie et al., 2023, arXiv:2305.13245).
"""

from __future__ import annotations

from compile.checkpoint import ModelConfig
from compile.graph import Attention, Embedding, Gate, Graph, Linear, Norm, Residual, Rope


def graph(config: ModelConfig) -> Graph:
    """The operations of a Llama of these sizes."""
    layer = "model.layers.{layer}."
    attention = layer + "self_attn."
    feed_forward = layer + "mlp."
    embedding = "model.embed_tokens.weight"
    return Graph(
        embedding=Embedding("x", embedding),
        layer=(
            Norm("h", "x", layer + "input_layernorm.weight", config.norm_eps),
            Linear("q", "h", attention + "q_proj.weight", "qkv"),
            Linear("k", "h", attention + "k_proj.weight", "qkv"),
            Linear("v", "h", attention + "v_proj.weight", "qkv"),
            Rope("q"),
            Rope("k"),
            Attention("a", "q", "k", "v"),
            Linear("o", "a", attention + "o_proj.weight", "o"),
            Residual("x", "o"),
            Norm("h", "x", layer + "post_attention_layernorm.weight", config.norm_eps),
            Linear("gate", "h", feed_forward + "gate_proj.weight", "gate_up"),
            Linear("up", "h", feed_forward + "up_proj.weight", "gate_up"),
            Gate("m", "gate", "up"),
            Linear("down", "m", feed_forward + "down_proj.weight", "down"),
            Residual("x", "down"),
        ),
        output=(
            Norm("h", "x", "model.norm.weight", config.norm_eps),
            Linear("logits", "h", embedding if config.tied else "lm_head.weight", "head"),
        ),
    )
