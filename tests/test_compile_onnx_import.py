"""ONNX decoders of other exporters: every weight is found, and nothing else is taken for one."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper

from compile import rope
from compile.checkpoint import Q4, Q8, Checkpoint
from compile.errors import CompileError, UnsupportedError
from compile.importer import open_checkpoint, source_files
from compile.onnx_matrix import pack
from compile.quantize.nearest import quantize4, quantize8
from compile.reference import Exact, Reference
from tests.onnx_graphs import Packed, write_beside, write_genai, write_plain
from tests.onnx_session import Session
from tests.same_tensors import assert_same_tensor, assert_same_tensors
from tests.tiny_model import TinyModel, write_tiny_huggingface

QKV = "model.layers.0.attn.qkv_proj.MatMul"
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.fixture(params=[True, False], ids=["tied", "untied"])
def tiny(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Checkpoint, TinyModel]:
    sizes = write_tiny_huggingface(tmp_path / "tiny", quantization="F32", tied=request.param)
    return open_checkpoint(tmp_path / "tiny"), sizes


def packed(matrix: Q4 | Q8, zero: NDArray[Any] | None = None) -> Packed:
    """As an exporter would write a matrix of ours; ``zero`` are integers, or left out."""
    nbits = pack(matrix)
    arrays: tuple[NDArray[Any], ...] = (nbits.data, nbits.scale)
    if zero is not None:
        both = np.pad(zero, ((0, 0), (0, zero.shape[1] % 2))).astype(np.uint8)
        arrays = (*arrays, both[:, ::2] | both[:, 1::2] << 4)
    return Packed(arrays, nbits.bits, nbits.block)


@pytest.mark.parametrize("external", [True, False])
def test_the_builders_float_graph(
    tiny: tuple[Checkpoint, TinyModel], tmp_path: Path, external: bool
) -> None:
    model, _ = tiny
    back = open_checkpoint(write_genai(tmp_path / "onnx", model, external=external))
    assert_same_tensors(back, model)
    assert back.config == replace(model.config, name="onnx")
    assert back.tokenizer == model.tokenizer


def test_plain_operations_and_weights_without_names(
    tiny: tuple[Checkpoint, TinyModel], tmp_path: Path
) -> None:
    model, sizes = tiny
    back = open_checkpoint(write_plain(tmp_path / "onnx", model, sizes))
    assert_same_tensors(back, model)
    assert back.config == replace(model.config, name="onnx")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_what_torch_exports(
    tiny: tuple[Checkpoint, TinyModel], tmp_path: Path, attention: str
) -> None:
    """optimum's way: transformers' model traced with its cache as inputs and outputs."""
    import torch
    import transformers

    model, sizes = tiny
    llama: Any = transformers.LlamaForCausalLM.from_pretrained(tmp_path / "tiny")
    llama.eval().set_attn_implementation(attention)

    class WithPast(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = llama

        def forward(self, input_ids: Any, attention_mask: Any, *past: Any) -> tuple[Any, ...]:
            cache: Any = transformers.DynamicCache()
            for layer in range(sizes.layers):
                cache.update(past[2 * layer], past[2 * layer + 1], layer)
            out = self.model(input_ids, attention_mask, past_key_values=cache, use_cache=True)
            layers = out.past_key_values.layers
            return out.logits, *(kept for layer in layers for kept in (layer.keys, layer.values))

    cached = [f"{i}.{kind}" for i in range(sizes.layers) for kind in ("key", "value")]
    inputs = ["input_ids", "attention_mask", *(f"past_key_values.{name}" for name in cached)]
    lengths: dict[str, dict[int, str]] = {
        name: {0: "batch", 2: "past"} if "past" in name else {0: "batch", 1: name}
        for name in inputs
    }
    write_beside(tmp_path / "onnx", model, sizes)
    path = tmp_path / "onnx" / "model.onnx"
    past = [torch.zeros(1, sizes.kv_heads, 2, sizes.head_dim) for _ in cached]
    torch.onnx.export(
        WithPast(),
        (torch.ones(1, 3, dtype=torch.long), torch.ones(1, 5, dtype=torch.long), *past),
        str(path),
        input_names=inputs,
        output_names=["logits", *(f"present.{name}" for name in cached)],
        dynamic_axes=lengths,
        dynamo=False,
        opset_version=17,
    )
    assert_same_tensors(open_checkpoint(path), model)
    tokens = list(range(5, 25))
    expected = Reference(model, Exact()).logits(tokens)
    np.testing.assert_allclose(Session(path).logits(tokens), expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("group", [32, 64])
def test_symmetric_integers_are_carried_over(
    tiny: tuple[Checkpoint, TinyModel], tmp_path: Path, group: int
) -> None:
    model, _ = tiny
    matrices: dict[str, Q4] = {}

    def quantize(name: str, weight: NDArray[np.float32]) -> Packed | None:
        if weight.shape[1] % group:
            return None
        matrices[name] = quantize4(weight, group, symmetric=True)
        return packed(matrices[name])

    back = open_checkpoint(write_genai(tmp_path / "onnx", model, quantize))
    whole, q = matrices[QKV], model.config.heads * model.config.head_dim
    for name, span in (("q", slice(0, q)), ("k", slice(q, q + 32)), ("v", slice(q + 32, q + 64))):
        expected = whole.rows(np.arange(whole.shape[0])[span])
        tensor = back.tensor(f"model.layers.0.self_attn.{name}_proj.weight")
        assert_same_tensor(tensor, expected, name)
    assert_same_tensor(back.tensor(UP), matrices["model.layers.1.mlp.up_proj.MatMul"], UP)
    assert_same_tensor(back.tensor("lm_head.weight"), matrices["lm_head.MatMul"], "head")
    assert not back.config.tied  # its embedding is still float


@pytest.mark.parametrize(("digits", "exact"), [(6, True), (11, False)])
def test_integer_zero_points_become_minimums(
    tiny: tuple[Checkpoint, TinyModel],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    digits: int,
    exact: bool,
) -> None:
    """Exactly while zero point times scale fits float16; else rounded, and said so once."""
    model, _ = tiny
    random = np.random.default_rng(1)
    matrices: dict[str, tuple[Q4, NDArray[Any]]] = {}

    def quantize(name: str, weight: NDArray[np.float32]) -> Packed:
        q = random.integers(0, 16, weight.shape, np.uint8)
        shape = (len(weight), weight.shape[1] // 32)
        scale = np.ldexp(random.integers(2 ** (digits - 1), 2**digits, shape), -digits - 6)
        zero = random.integers(0, 16, shape)
        matrices[name] = Q4(q, scale.astype(np.float16)), zero
        return packed(matrices[name][0], zero)

    back = open_checkpoint(write_genai(tmp_path / "onnx", model, quantize))
    with caplog.at_level(logging.WARNING):
        tensors = [back.tensor(UP), back.tensor("model.layers.0.mlp.down_proj.weight")]
    matrix, zero = matrices["model.layers.1.mlp.up_proj.MatMul"]
    minimum = (-zero * matrix.scale.astype(np.float64)).astype(np.float16)
    assert_same_tensor(tensors[0], replace(matrix, minimum=minimum), UP)
    assert len(caplog.records) == (0 if exact else 1)


def test_eight_bits_and_blocks_that_ours_lack(
    tiny: tuple[Checkpoint, TinyModel], tmp_path: Path
) -> None:
    model, _ = tiny
    down, head = "model.layers.0.mlp.down_proj.MatMul", "lm_head.MatMul"
    eight: dict[str, Q8] = {}

    def quantize(name: str, weight: NDArray[np.float32]) -> Packed | None:
        if name == head:
            eight[name] = quantize8(weight)
            return packed(eight[name])
        if name != down:
            return None
        four = quantize4(weight, 32, symmetric=True)
        data = pack(four).data.reshape(len(weight), -1, 8)  # blocks of 16
        return Packed((data, np.repeat(four.scale, 2, axis=1).astype(np.float32)), 4, 16)

    back = open_checkpoint(write_genai(tmp_path / "onnx", model, quantize))
    assert_same_tensor(back.tensor("lm_head.weight"), eight[head], head)
    weight = model.tensor("model.layers.0.mlp.down_proj.weight")
    expected = quantize4(weight, 32, symmetric=True).dequantize()
    np.testing.assert_array_equal(back.tensor("model.layers.0.mlp.down_proj.weight"), expected)


@pytest.mark.parametrize("base", [10000.0, 500000.0])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_rotary_frequencies_are_read_off_their_tables(base: float, dtype: Any) -> None:
    plain = rope.frequencies(base, 64)
    scaled = rope.llama3(plain, 8.0, 1.0, 4.0, 512.0)
    for frequencies, error in ((plain, 0.0), (scaled, 1e-6)):
        angles = np.arange(1024)[:, None] * frequencies
        found = rope.from_tables(np.cos(angles).astype(dtype), np.sin(angles).astype(dtype))
        np.testing.assert_allclose(found, frequencies, rtol=0, atol=error)


Change = Callable[[onnx.ModelProto], None]


def node(model: onnx.ModelProto, op: str) -> onnx.NodeProto:
    found: onnx.NodeProto = next(n for n in model.graph.node if n.op_type == op)
    return found


def insert(model: onnx.ModelProto, value: str, new: onnx.NodeProto) -> None:
    """Behind the node that gives a value: nodes stand in order."""
    at = next(i for i, n in enumerate(model.graph.node) if value in n.output)
    model.graph.node.insert(at + 1, new)


def gelu(model: onnx.ModelProto) -> None:
    node(model, "Sigmoid").op_type = "Tanh"


def without_cache(model: onnx.ModelProto) -> None:
    del model.graph.output[1:]


def biased(model: onnx.ModelProto) -> None:
    value = next(n for n in model.graph.node if n.op_type == "MatMul").output[0]
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.ones(128, np.float32), "bias"))
    for other in model.graph.node:
        other.input[:] = ["biased" if name == value else name for name in other.input]
    insert(model, value, helper.make_node("Add", [value, "bias"], ["biased"], "the_bias"))


def biased_by_a_cast(model: onnx.ModelProto) -> None:
    biased(model)
    added = next(n for n in model.graph.node if n.name == "the_bias")
    added.input[1] = "cast"
    cast = helper.make_node("Cast", ["bias"], ["cast"], "the_cast", to=onnx.TensorProto.FLOAT)
    model.graph.node.insert(list(model.graph.node).index(added), cast)


def of_another_scale(model: onnx.ModelProto) -> None:
    attention = node(model, "GroupQueryAttention")
    attention.attribute.append(helper.make_attribute("scale", 0.5))


def softcapped(model: onnx.ModelProto) -> None:
    attention = node(model, "GroupQueryAttention")
    next(a for a in attention.attribute if a.name == "softcap").f = 30.0


def scaled_embedding(model: onnx.ModelProto) -> None:
    gather = node(model, "Gather")
    value = gather.output[0]
    gather.output[0] = "raw"
    scale = onnx.numpy_helper.from_array(np.array(8, np.float32), "eight")
    model.graph.initializer.append(scale)
    insert(model, "raw", helper.make_node("Mul", ["raw", "eight"], [value], "times_eight"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (gelu, r"node 'n\d+' \(Tanh\): not part of a supported Llama"),
        (without_cache, "its outputs are not logits and present.N.key and .value"),
        (biased, r"node 'the_bias' \(Add\): not part of|'the_bias' \(Add\): a bias is not part"),
        (biased_by_a_cast, r"'the_bias' \(Add\)"),
        (of_another_scale, r"\(GroupQueryAttention\): scale 0.5 is not 1 / √32"),
        (softcapped, r"\(GroupQueryAttention\): softcap 30.0 is not supported"),
        (scaled_embedding, r"node 'times_eight' \(Mul\): not part of a supported Llama"),
    ],
)
def test_what_is_no_llama_is_refused_by_name(tmp_path: Path, change: Change, message: str) -> None:
    write_tiny_huggingface(tmp_path / "tiny", quantization="F32")
    path = write_genai(tmp_path / "onnx", open_checkpoint(tmp_path / "tiny"))
    model = onnx.load(path)
    change(model)
    onnx.save(model, path)
    with pytest.raises(UnsupportedError, match=message) as caught:
        open_checkpoint(path)
    assert "\n" not in str(caught.value)


def test_damaged_and_incomplete_files_say_so(tmp_path: Path) -> None:
    write_tiny_huggingface(tmp_path / "tiny", quantization="F32")
    model = open_checkpoint(tmp_path / "tiny")
    path = write_genai(tmp_path / "onnx", model, external=True)
    data, settings = path.with_name("weights.bin"), path.with_name("genai_config.json")
    content = path.read_bytes()

    def refusal() -> str:
        with pytest.raises(CompileError) as caught:
            open_checkpoint(path)
        assert "\n" not in str(caught.value)
        return str(caught.value)

    data.rename(tmp_path / "elsewhere")
    assert "weights.bin is missing, model.onnx needs it" in refusal()
    data.write_bytes((tmp_path / "elsewhere").read_bytes()[:-9])
    assert "weights.bin: cut short or another model's" in refusal()
    (tmp_path / "elsewhere").rename(data)
    for damage in (b"", content[:-40], b"\xff" * 40):
        path.write_bytes(damage)
        assert "model.onnx: not an ONNX file" in refusal()
    path.write_bytes(content.replace(b"weights.bin", b"../weights."))
    assert "not a file beside it" in refusal()
    path.write_bytes(content)
    settings.rename(tmp_path / "genai_config.json")
    assert "config.json is missing" in refusal()


def test_layers_that_the_settings_do_not_count_are_not_dropped(tmp_path: Path) -> None:
    write_tiny_huggingface(tmp_path / "tiny", quantization="F32")
    model = open_checkpoint(tmp_path / "tiny")
    path = write_genai(tmp_path / "onnx", model)
    settings = path.with_name("genai_config.json")
    whole = json.loads(settings.read_text(encoding="utf-8"))
    for layers in (model.config.layers - 1, model.config.layers + 1):
        whole["model"]["decoder"]["num_hidden_layers"] = layers
        settings.write_text(json.dumps(whole), encoding="utf-8")
        said = f"the graph has {model.config.layers} layers, genai_config.json says {layers}"
        with pytest.raises(CompileError, match=said):
            open_checkpoint(path)


def test_a_value_that_comes_from_itself_ends(tmp_path: Path) -> None:
    write_tiny_huggingface(tmp_path / "tiny", quantization="F32")
    path = write_genai(tmp_path / "onnx", open_checkpoint(tmp_path / "tiny"))
    graph = onnx.load(path)
    value = node(graph, "MatMul").input[1]
    for operation in ("Cast", "Transpose"):
        damaged = onnx.ModelProto()
        damaged.CopyFrom(graph)
        kept = [tensor for tensor in damaged.graph.initializer if tensor.name != value]
        del damaged.graph.initializer[:]
        damaged.graph.initializer.extend(kept)
        damaged.graph.node.insert(0, helper.make_node(operation, [value], [value]))
        onnx.save(damaged, path)
        with pytest.raises(CompileError) as caught:
            open_checkpoint(path)
        assert "\n" not in str(caught.value)


def test_all_files_that_decide_what_a_model_is_are_known(tmp_path: Path) -> None:
    folder = tmp_path / "tiny"
    write_tiny_huggingface(folder, quantization="F32")
    before = source_files(folder)
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {p.name for p in before}
    for name in ("out.edge", "out.edge.html", "recipe.toml", "out.edge.work/done.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).touch()  # as a run in the model's own folder leaves
    assert source_files(folder) == before
    graph = write_genai(tmp_path / "onnx", open_checkpoint(folder), external=True)
    names = {path.name for path in source_files(graph)}
    assert {"model.onnx", "weights.bin", "genai_config.json", "tokenizer.json"} <= names
    assert source_files(before[0]) == [before[0]]
