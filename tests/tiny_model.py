"""Tiny Llama checkpoints with random weights and a real tokenizer, for every test that needs one.

The GGUF and the Hugging Face folder of the same arguments hold the same weights: the folder gets
what the GGUF's blocks mean, in float32 where they are quantized.

    model = write_tiny_gguf(tmp_path / "tiny.gguf", quantization="Q4_1")
    write_tiny_huggingface(tmp_path / "tiny", quantization="Q4_1")
    model.weights["model.layers.0.self_attn.q_proj.weight"]    # float32, what both mean
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import safetensors
from numpy.typing import NDArray
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")  # ids 0, 1, 2
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = (
    "The capital of France is Paris. What is the capital of Italy? It is Rome, of course.",
    "A small model on a small board answers the sensors that ask it something over the network.",
    "In the morning the temperature in the room was 21 degrees, and in the evening it was 19.",
    "The user says hello and the assistant says hello; then the user asks for the time.",
    "Water the plants when the soil is dry, and close the window when it starts to rain.",
    "This is the house that the other engineers built there with their own hands.",
)
# Bytes from which a block's float16 scales start, and how many there are, of types that the gguf
# package cannot quantize to: their blocks are random bytes between scales of a sane size.
SCALES = {"IQ4_NL": (0, 1), "IQ4_XS": (0, 1), "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208, 1)}


@dataclass(frozen=True)
class TinyModel:
    """Sizes of a tiny model; its weights follow from them and the seed."""

    quantization: str = "Q4_0"  # a ggml type name; of every matrix but embedding and head
    layers: int = 2
    width: int = 64
    heads: int = 2
    kv_heads: int = 1
    head_dim: int = 32
    ffn: int = 96
    vocab: int = 320
    tied: bool = True
    seed: int = 0
    context: int = 256
    rope_base: float = 10000.0
    head_quantization: str | None = None  # of embedding and head

    @property
    def embedding_quantization(self) -> str:
        """Type of the embedding and of the head: Q8_0 over 4-bit layers, as files in use have."""
        if self.head_quantization is not None:
            return self.head_quantization
        return "Q8_0" if self.quantization in ("Q4_0", "Q4_1") else self.quantization

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Every tensor's Hugging Face name and its shape, the norms' of one dimension."""
        shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (self.vocab, self.width)}
        for layer in range(self.layers):
            prefix = f"model.layers.{layer}."
            q_rows, kv_rows = self.heads * self.head_dim, self.kv_heads * self.head_dim
            shapes |= {
                f"{prefix}input_layernorm.weight": (self.width,),
                f"{prefix}self_attn.q_proj.weight": (q_rows, self.width),
                f"{prefix}self_attn.k_proj.weight": (kv_rows, self.width),
                f"{prefix}self_attn.v_proj.weight": (kv_rows, self.width),
                f"{prefix}self_attn.o_proj.weight": (self.width, q_rows),
                f"{prefix}post_attention_layernorm.weight": (self.width,),
                f"{prefix}mlp.gate_proj.weight": (self.ffn, self.width),
                f"{prefix}mlp.up_proj.weight": (self.ffn, self.width),
                f"{prefix}mlp.down_proj.weight": (self.width, self.ffn),
            }
        shapes["model.norm.weight"] = (self.width,)
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocab, self.width)
        return shapes

    def stored(self, name: str) -> gguf.GGMLQuantizationType:
        """The ggml type that a tensor is stored in; norms are always float32."""
        if name.endswith("norm.weight"):
            return gguf.GGMLQuantizationType.F32
        outer = name in ("model.embed_tokens.weight", "lm_head.weight")
        return gguf.GGMLQuantizationType[
            self.embedding_quantization if outer else self.quantization
        ]

    @functools.cached_property
    def blocks(self) -> dict[str, NDArray[Any]]:
        """Every tensor as ggml stores it, rows in Hugging Face's order: float32, float16, uint8."""
        random = np.random.default_rng(self.seed)
        blocks: dict[str, NDArray[Any]] = {}
        for name, shape in self.shapes().items():
            kind = self.stored(name)
            values = random.standard_normal(shape, dtype=np.float32)
            if len(shape) == 1:
                blocks[name] = 1 + values / 8
            elif kind.name in SCALES:
                blocks[name] = random_blocks(kind, shape, random)
            else:
                blocks[name] = gguf.quants.quantize(values / np.float32(shape[1] ** 0.5), kind)
        return blocks

    @functools.cached_property
    def weights(self) -> dict[str, NDArray[np.float32]]:
        """Every tensor's meaning in float32, by Hugging Face's names."""
        return {
            name: np.ascontiguousarray(gguf.quants.dequantize(data, self.stored(name)))
            for name, data in self.blocks.items()
        }


def random_blocks(
    kind: gguf.GGMLQuantizationType, shape: tuple[int, ...], random: np.random.Generator
) -> NDArray[np.uint8]:
    """Blocks of a type in SCALES, uint8 [rows, bytes]; the columns are a multiple of its block."""
    block, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = random.integers(0, 256, (shape[0] * shape[1] // block, size), dtype=np.uint8)
    start, count = SCALES[kind.name]
    scales = random.uniform(1e-4, 2e-4, (blocks.shape[0], count)).astype(np.float16)
    blocks[:, start : start + 2 * count] = scales.view(np.uint8)
    return blocks.reshape(shape[0], -1)


@functools.cache
def tiny_tokenizer(vocab: int = 320) -> Tokenizer:
    """A byte-level BPE of ``vocab`` tokens, split as SmolLM2's: digits alone, then GPT-2's way."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab,
        show_progress=False,
        special_tokens=[AddedToken(token, special=True) for token in SPECIAL_TOKENS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    if tokenizer.get_vocab_size() != vocab:
        raise ValueError(f"the corpus gives {tokenizer.get_vocab_size()} tokens, not {vocab}")
    return tokenizer


def write_tiny_gguf(path: Path, **sizes: Any) -> TinyModel:
    """Write a tiny model as a GGUF; ``sizes`` are :class:`TinyModel`'s, which it returns."""
    model = TinyModel(**sizes)
    writer = tiny_gguf_writer(path, model)
    for name, (data, kind) in tiny_gguf_tensors(model).items():
        writer.add_tensor(name, data, raw_dtype=kind)
    finish(writer)
    return model


def tiny_gguf_writer(path: Path, model: TinyModel) -> gguf.GGUFWriter:
    """A writer that has the model's metadata already."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name("Tiny")
    writer.add_license("apache-2.0")
    writer.add_block_count(model.layers)
    writer.add_context_length(model.context)
    writer.add_embedding_length(model.width)
    writer.add_feed_forward_length(model.ffn)
    writer.add_head_count(model.heads)
    writer.add_head_count_kv(model.kv_heads)
    writer.add_key_length(model.head_dim)
    writer.add_value_length(model.head_dim)
    writer.add_rope_dimension_count(model.head_dim)
    writer.add_rope_freq_base(model.rope_base)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(model.vocab)
    add_tokenizer(writer, model.vocab)
    return writer


def tiny_gguf_tensors(
    model: TinyModel,
) -> dict[str, tuple[NDArray[Any], gguf.GGMLQuantizationType]]:
    """Every tensor by llama.cpp's name and in its row order."""
    tensors = {}
    for name, data in model.blocks.items():
        if name.endswith("q_proj.weight"):
            data = permuted(data, model.heads)
        elif name.endswith("k_proj.weight"):
            data = permuted(data, model.kv_heads)
        tensors[gguf_name(name)] = data, model.stored(name)
    return tensors


def finish(writer: gguf.GGUFWriter) -> None:
    """Write what the writer was given."""
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def add_tokenizer(writer: gguf.GGUFWriter, vocab: int) -> None:
    """The tiny tokenizer as GGUF metadata."""
    state = json.loads(tiny_tokenizer(vocab).to_str())["model"]
    tokens = sorted(state["vocab"], key=state["vocab"].__getitem__)
    kinds = [
        gguf.TokenType.CONTROL if token in SPECIAL_TOKENS else gguf.TokenType.NORMAL
        for token in tokens
    ]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(kinds)
    writer.add_token_merges([" ".join(pair) for pair in state["merges"]])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)


def permuted(data: NDArray[Any], heads: int) -> NDArray[Any]:
    """Rows as llama.cpp wants them for its rotary embedding: a head's two halves interleaved."""
    rows = data.reshape(heads, 2, data.shape[0] // heads // 2, -1)
    return np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(data.shape)


def gguf_name(name: str) -> str:
    """llama.cpp's name of a tensor."""
    outer = {
        "model.embed_tokens.weight": "token_embd.weight",
        "model.norm.weight": "output_norm.weight",
        "lm_head.weight": "output.weight",
    }
    inner = {
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    if name in outer:
        return outer[name]
    layer, part = name.removeprefix("model.layers.").removesuffix(".weight").split(".", 1)
    return f"blk.{layer}.{inner[part]}.weight"


def write_tiny_huggingface(folder: Path, **sizes: Any) -> TinyModel:
    """Write the same model as a Hugging Face folder; F16 and BF16 stay what they are."""
    model = TinyModel(**sizes)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", huggingface_config(model))
    tiny_tokenizer(model.vocab).save(str(folder / "tokenizer.json"))
    write_json(
        folder / "tokenizer_config.json",
        {
            "bos_token": "<|im_start|>",
            "eos_token": "<|im_end|>",
            "chat_template": CHAT_TEMPLATE,
            "tokenizer_class": "GPT2Tokenizer",
        },
    )
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})
    tensors = {}
    for name, shape in model.shapes().items():
        stored = model.stored(name).name
        data = model.blocks[name] if stored in ("F16", "BF16") else model.weights[name]
        dtype = {"F16": "float16", "BF16": "bfloat16"}.get(stored, "float32")
        tensors[name] = safetensors.TensorSpec(
            dtype=dtype, shape=shape, data_ptr=data.ctypes.data, data_len=data.nbytes
        )
    safetensors.serialize_file(tensors, folder / "model.safetensors", {"format": "pt"})
    return model


def write_tiny_teacher(folder: Path, **sizes: Any) -> None:
    """Write a Qwen 2 with random weights, which only transformers opens, for the same tokenizer.

    Its matrices have rows for 64 tokens more than there are.
    """
    from transformers import Qwen2Config, Qwen2ForCausalLM

    model = TinyModel(**sizes)
    write_tiny_huggingface(folder, **sizes)  # of which its own files take the place of some
    config = Qwen2Config(
        vocab_size=model.vocab + 64,
        hidden_size=2 * model.width,
        intermediate_size=2 * model.ffn,
        num_hidden_layers=model.layers + 1,
        num_attention_heads=model.heads,
        num_key_value_heads=model.kv_heads,
        max_position_embeddings=model.context,
    )
    Qwen2ForCausalLM(config).save_pretrained(folder)


def huggingface_config(model: TinyModel) -> dict[str, Any]:
    """config.json of the model."""
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_size": model.width,
        "intermediate_size": model.ffn,
        "num_hidden_layers": model.layers,
        "num_attention_heads": model.heads,
        "num_key_value_heads": model.kv_heads,
        "head_dim": model.head_dim,
        "max_position_embeddings": model.context,
        "rms_norm_eps": 1e-5,
        "rope_theta": model.rope_base,
        "rope_scaling": None,
        "tie_word_embeddings": model.tied,
        "vocab_size": model.vocab,
    }


def write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=1), encoding="utf-8")
