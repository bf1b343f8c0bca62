"""Hugging Face folders: the same model as its GGUF, and clear errors where one is incomplete."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file
from tokenizers import Tokenizer, processors

from compile.checkpoint import Q4, Q8
from compile.errors import CompileError, UnsupportedError
from compile.importer import open_checkpoint
from tests.tiny_model import CHAT_TEMPLATE, write_json, write_tiny_gguf, write_tiny_huggingface


def change(path: Path, **values: Any) -> None:
    """Replace entries of a JSON file; None removes one."""
    settings = json.loads(path.read_text())
    write_json(path, {k: v for k, v in (settings | values).items() if v is not None})


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_huggingface(tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("quantization", ["F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1"])
def test_a_gguf_and_a_folder_of_one_model_are_equal(
    tmp_path: Path, quantization: str, tied: bool
) -> None:
    write_tiny_gguf(tmp_path / "m.gguf", quantization=quantization, tied=tied)
    write_tiny_huggingface(tmp_path / "Tiny", quantization=quantization, tied=tied)
    ours, theirs = open_checkpoint(tmp_path / "m.gguf"), open_checkpoint(tmp_path / "Tiny")
    assert {**vars(ours.config), "license": None} == vars(theirs.config)
    assert list(ours.names()) == list(theirs.names())
    for name in ours.names():
        tensor, expected = ours.tensor(name), theirs.tensor(name)
        values = tensor.dequantize() if isinstance(tensor, Q4 | Q8) else tensor
        assert isinstance(expected, np.ndarray)
        assert values.dtype == expected.dtype
        assert np.array_equal(values, expected), name
    assert vars(ours.tokenizer) | {"tokenizer_json": b""} == vars(theirs.tokenizer) | {
        "tokenizer_json": b""
    }
    text = "The capital of France is 42 <|im_end|>\n"
    assert encoded(ours.tokenizer.tokenizer_json, text) == encoded(
        theirs.tokenizer.tokenizer_json, text
    )


def encoded(tokenizer_json: bytes, text: str) -> list[int]:
    ids: list[int] = Tokenizer.from_str(tokenizer_json.decode()).encode(text).ids
    return ids


def split(folder: Path) -> None:
    """Take the weights apart into two shards and an index."""
    tensors = load_file(folder / "model.safetensors")
    shards: dict[str, dict[str, Any]] = {
        "model-00001-of-00002.safetensors": {},
        "model-00002-of-00002.safetensors": {},
    }
    weight_map = {}
    for index, (name, values) in enumerate(tensors.items()):
        shard = list(shards)[index % 2]
        shards[shard][name] = values
        weight_map[name] = shard
    for shard, part in shards.items():
        save_file(part, folder / shard)
    write_json(folder / "model.safetensors.index.json", {"weight_map": weight_map})
    (folder / "model.safetensors").unlink()


def test_shards(folder: Path) -> None:
    before = open_checkpoint(folder)
    split(folder)
    after = open_checkpoint(folder)
    for name in before.names():
        assert np.array_equal(before.tensor(name), after.tensor(name))  # type: ignore[arg-type]


# --- rotary positions ---------------------------------------------------------------------------

LLAMA3 = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}


def llama3_frequency(frequency: float) -> float:
    """As Llama 3's authors write it, one frequency at a time."""
    wavelength = 2 * np.pi / frequency
    if wavelength < 64 / 4.0:
        return frequency
    if wavelength > 64 / 1.0:
        return frequency / 8.0
    smooth = (64 / wavelength - 1.0) / (4.0 - 1.0)
    return (1 - smooth) * frequency / 8.0 + smooth * frequency


PLAIN = [10000.0 ** (-i / 16) for i in range(16)]
SCALED = [llama3_frequency(frequency) for frequency in PLAIN]


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, PLAIN),
        ({"rope_scaling": {"rope_type": "default"}}, PLAIN),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, [f / 2 for f in PLAIN]),
        ({"rope_scaling": {"rope_type": "llama3", **LLAMA3}}, SCALED),
        (
            {
                "rope_theta": None,
                "rope_parameters": {"rope_type": "llama3", "rope_theta": 10000.0, **LLAMA3},
            },
            SCALED,
        ),
        (
            {
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
                "rope_scaling": {"rope_type": "llama3", **LLAMA3},
            },
            SCALED,
        ),
        ({"rope_theta": 100.0}, [100.0 ** (-i / 16) for i in range(16)]),
    ],
)
def test_rope_scaling(folder: Path, settings: dict[str, Any], expected: list[float]) -> None:
    change(folder / "config.json", **settings)
    assert open_checkpoint(folder).config.rope_frequencies == pytest.approx(expected, rel=1e-12)


def test_a_sliding_window_limits_the_context(folder: Path) -> None:
    change(folder / "config.json", model_type="mistral", sliding_window=64)
    assert open_checkpoint(folder).config.context == 64
    change(folder / "config.json", use_sliding_window=False)
    assert open_checkpoint(folder).config.context == 256


# --- tokenizer ----------------------------------------------------------------------------------


def test_several_ends_of_an_answer(folder: Path) -> None:
    write_json(folder / "generation_config.json", {"eos_token_id": [5, 2]})
    assert open_checkpoint(folder).tokenizer.eos_token_ids == (2, 5, 0)


def test_special_tokens_as_objects(folder: Path) -> None:
    change(folder / "tokenizer_config.json", bos_token={"content": "<|endoftext|>"})
    tokenizer = open_checkpoint(folder).tokenizer
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|endoftext|>", 0)


def test_special_tokens_of_the_configuration_alone(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "generation_config.json").unlink()
    tokenizer = open_checkpoint(folder).tokenizer
    assert (tokenizer.bos_token, tokenizer.bos_token_id) == ("<|im_start|>", 1)
    assert (tokenizer.eos_token, tokenizer.eos_token_ids) == ("<|im_end|>", (2, 0))
    assert tokenizer.chat_template is None


def test_no_special_tokens(folder: Path) -> None:
    (folder / "tokenizer_config.json").unlink()
    (folder / "generation_config.json").unlink()
    change(folder / "config.json", bos_token_id=None, eos_token_id=None)
    tokenizer = open_checkpoint(folder).tokenizer
    assert (tokenizer.bos_token, tokenizer.bos_token_id, tokenizer.eos_token) == ("", None, "")


def test_the_template_has_a_file_of_its_own(folder: Path) -> None:
    assert open_checkpoint(folder).tokenizer.chat_template == CHAT_TEMPLATE
    named = [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]
    change(folder / "tokenizer_config.json", chat_template=named)
    assert open_checkpoint(folder).tokenizer.chat_template == "d"
    (folder / "chat_template.jinja").write_text("é")
    assert open_checkpoint(folder).tokenizer.chat_template == "é"


def test_the_tokenizer_neither_adds_nor_cuts(folder: Path) -> None:
    path = str(folder / "tokenizer.json")
    tokenizer = Tokenizer.from_file(path)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<|im_start|> $A", special_tokens=[("<|im_start|>", 1)]
    )
    tokenizer.enable_truncation(4)
    tokenizer.enable_padding(length=8)
    tokenizer.save(path)
    files = open_checkpoint(folder).tokenizer
    assert files.add_bos  # as the file did
    assert len(encoded(files.tokenizer_json, "abcdefghij")) == 9
    change(folder / "tokenizer_config.json", add_bos_token=False)
    assert not open_checkpoint(folder).tokenizer.add_bos


# --- what is wrong or not supported -------------------------------------------------------------


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_text(name: str, text: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        (folder / name).write_text(text)

    return make


def configured(**values: Any) -> Callable[[Path], None]:
    return lambda folder: change(folder / "config.json", **values)


def with_tensors(**tensors: Any) -> Callable[[Path], None]:
    """Weights with tensors added or replaced, ``__`` in a name standing for a dot."""

    def make(folder: Path) -> None:
        path = folder / "model.safetensors"
        named = {name.replace("__", "."): values for name, values in tensors.items()}
        weights = load_file(path) | named
        save_file({k: v for k, v in weights.items() if v is not None}, path)

    return make


def sharded(**weight_map: Any) -> Callable[[Path], None]:
    return lambda folder: write_json(
        folder / "model.safetensors.index.json", {"weight_map": weight_map}
    )


def with_model(**values: Any) -> Callable[[Path], None]:
    """A tokenizer.json with these entries of its model changed."""

    def make(folder: Path) -> None:
        state = json.loads((folder / "tokenizer.json").read_text())
        state["model"] |= values
        write_json(folder / "tokenizer.json", state)

    return make


def pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


UNSUPPORTED = {
    "model_type 'gemma3'": configured(model_type="gemma3"),
    "attention_bias is true": configured(attention_bias=True),
    "mlp_bias is true": configured(mlp_bias=True),
    "hidden_act 'gelu'": configured(hidden_act="gelu"),
    "partial_rotary_factor": configured(partial_rotary_factor=0.5),
    "weights quantized by 'gptq'": configured(quantization_config={"quant_method": "gptq"}),
    "rope scaling 'yarn'": configured(rope_scaling={"rope_type": "yarn"}),
    "'model.layers.0.self_attn.q_proj.bias': biases": with_tensors(
        model__layers__0__self_attn__q_proj__bias=np.zeros(64, np.float32)
    ),
    "'score.weight'": with_tensors(score__weight=np.zeros((2, 64), np.float32)),
    "weights as pickle": pickled,
}
WRONG = {
    "config.json: not valid JSON: 'utf-8'": with_text("config.json", '{"a": "\\ud800"}'),
    "config.json is missing": without("config.json"),
    "config.json: not valid JSON": with_text("config.json", "{"),
    "config.json: not a JSON object": with_text("config.json", "[]"),
    "'model_type' is missing": configured(model_type=None),
    "'hidden_size' must be a whole number": configured(hidden_size="64"),
    "norm epsilon 1e+300 is not between": configured(rms_norm_eps=1e300),
    "'rms_norm_eps' must be a finite number": configured(rms_norm_eps=10**400),
    "'attention_bias' must be true or false": configured(attention_bias=1),
    "'rope_scaling' must be an object": configured(rope_scaling=[1]),
    "'factor' is missing": configured(rope_scaling={"type": "linear"}),
    "rope scaling by 0.5": configured(rope_scaling={"type": "linear", "factor": 0.5}),
    "makes no sense": configured(
        rope_scaling={"rope_type": "llama3", **LLAMA3, "low_freq_factor": 4.0}
    ),
    "layers of 1000000": configured(num_hidden_layers=1000000),
    "cannot be divided by 3 heads": configured(num_attention_heads=3, head_dim=None),
    "shape [96, 64], the model's sizes ask for [128, 64]": configured(intermediate_size=128),
    "'lm_head.weight' is missing": configured(tie_word_embeddings=False),
    "'model.norm.weight' is missing": with_tensors(model__norm__weight=None),
    "tokenizer.json is missing": without("tokenizer.json"),
    "tokenizer.json: not a tokenizer": with_text("tokenizer.json", "{}"),
    # the library panics over this one
    "json: not a tokenizer: ": with_model(continuing_subword_prefix="much too long"),
    "outside the model's vocabulary": lambda folder: change(
        folder / "tokenizer.json",
        added_tokens=[
            {
                "id": 320,
                "content": "<new>",
                "single_word": False,
                "lstrip": False,
                "rstrip": False,
                "normalized": False,
                "special": True,
            }
        ],
    ),
    "token 320 is outside": with_text("generation_config.json", '{"eos_token_id": 320}'),
    "'eos_token_id' must be token ids": with_text("generation_config.json", '{"eos_token_id": ""}'),
    "'chat_template' must be a string": with_text("tokenizer_config.json", '{"chat_template": 1}'),
    "model.safetensors is missing": without("model.safetensors"),
    "cut short: 3 bytes": with_text("model.safetensors", "abc"),
    "a header of 7016996765293437281 bytes": with_text("model.safetensors", "a" * 100),
    "'weight_map' is missing or empty": sharded(),
    "['x'] is not the name of a file": sharded(a=["x"]),
    "'../x' is not the name of a file": sharded(a="../x"),
    "x.safetensors is missing, the index lists it": sharded(a="x.safetensors"),
}


@pytest.mark.parametrize("message", UNSUPPORTED)
def test_what_is_not_supported_is_named(folder: Path, message: str) -> None:
    UNSUPPORTED[message](folder)
    with pytest.raises(UnsupportedError) as caught:
        open_checkpoint(folder)
    assert_one_line(str(caught.value), folder, message)


@pytest.mark.parametrize("message", WRONG)
def test_what_is_wrong_is_named(folder: Path, message: str) -> None:
    WRONG[message](folder)
    with pytest.raises(CompileError) as caught:
        open_checkpoint(folder)
    assert_one_line(str(caught.value), folder, message)


def assert_one_line(text: str, folder: Path, part: str) -> None:
    assert part in text
    assert str(folder) in text
    assert "\n" not in text


def test_a_tensor_in_two_shards(folder: Path) -> None:
    split(folder)
    first, second = sorted(folder.glob("model-*"))
    save_file(load_file(first) | load_file(second), second)
    with pytest.raises(CompileError, match="is in another file as well"):
        open_checkpoint(folder)


def test_weights_of_another_type(folder: Path) -> None:
    norm = np.ones(64, np.float64)
    with_tensors(model__norm__weight=norm)(folder)
    with pytest.raises(UnsupportedError, match=r"'model\.norm\.weight' is stored as F64"):
        open_checkpoint(folder)


def test_weights_that_are_no_numbers(folder: Path) -> None:
    with_tensors(model__norm__weight=np.full(64, np.nan, np.float32))(folder)
    with pytest.raises(CompileError, match="holds infinite or NaN weights"):
        open_checkpoint(folder).tensor("model.norm.weight")


def test_tensors_that_repeat_the_configuration_are_left_out(folder: Path) -> None:
    frequencies = np.ones(16, np.float32)
    with_tensors(
        lm_head__weight=np.zeros((320, 64), np.float32),
        model__layers__0__self_attn__rotary_emb__inv_freq=frequencies,
    )(folder)
    assert "lm_head.weight" not in open_checkpoint(folder).names()


def test_a_name_that_is_no_tensor(folder: Path) -> None:
    with pytest.raises(KeyError):
        open_checkpoint(folder).tensor("lm_head.weight")


def outcome(folder: Path) -> str:
    """Read the whole model: what the error says, or nothing."""
    try:
        checkpoint = open_checkpoint(folder)
        for name in checkpoint.names():
            checkpoint.tensor(name)
    except CompileError as error:
        return str(error)
    return ""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    folder = tmp_path_factory.mktemp("huggingface") / "m"
    write_tiny_huggingface(folder, layers=1, width=32, heads=1, ffn=32)
    return folder, (folder / "model.safetensors").read_bytes()


@given(data=st.data())
@settings(max_examples=100, deadline=2000)
def test_any_change_of_the_weights_is_a_model_or_an_error(
    small: tuple[Path, bytes], data: st.DataObject
) -> None:
    folder, original = small
    changed = bytearray(original)
    length = struct.unpack("<Q", original[:8])[0]
    for position in data.draw(st.lists(st.integers(0, length + 8), min_size=1, max_size=3)):
        changed[position] = data.draw(st.integers(0, 255))
    end = data.draw(st.one_of(st.just(len(changed)), st.integers(0, len(changed))))
    (folder / "model.safetensors").write_bytes(changed[:end])
    assert "\n" not in outcome(folder)
