"""8 bits: which products they are for, and what stays."""

from itertools import pairwise

import numpy as np
import onnx
import onnxruntime
import torch

from unicl.use.export.graphs import Graph
from unicl.use.export.onnx import write_onnx
from unicl.use.export.quantise import FIRST, quantise_dynamic, quantise_static


class Layers(torch.nn.Module):
    """Convolutions of three kinds and two products, the second of which is a head."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        sizes = [3, *[16] * (FIRST + 2)]
        self.stem = torch.nn.Sequential(*(torch.nn.Conv2d(a, b, 3, padding=1) for a, b in pairwise(sizes)))
        self.depthwise = torch.nn.Conv2d(16, 16, 3, groups=16)
        self.body = torch.nn.Linear(16, 16)
        self.head = torch.nn.Linear(16, 8)

    def forward(self, x):
        features = torch.relu(self.body(self.depthwise(self.stem(x)).mean((2, 3))))
        return self.head(features), features


def written(tmp_path):
    inputs = {"x": torch.randn(2, 3, 8, 8)}
    graph = Graph(module=Layers().eval(), inputs=inputs, varying={"x": {0: "rows"}}, outputs=("whole", "features"))
    write_onnx(graph, tmp_path / "a.onnx", opset=18, notes={})
    return tmp_path / "a.onnx"


def int8_weights(path):
    return [
        i for i in onnx.load(str(path)).graph.initializer if i.data_type == onnx.TensorProto.INT8 and len(i.dims) > 1
    ]


def cosine(source, out):
    x = np.random.default_rng(0).normal(size=(5, 3, 8, 8)).astype(np.float32)
    a, b = (onnxruntime.InferenceSession(str(path)).run(["whole"], {"x": x})[0] for path in (source, out))
    assert not np.array_equal(a, b)
    return ((a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)).min()


def test_dynamic_ranges_change_all_products_but_the_head(tmp_path):
    source, out = written(tmp_path), tmp_path / "b.onnx"
    quantise_dynamic(source, out, keep="features")
    assert [list(i.dims) for i in int8_weights(out)] == [[16, 16]]
    assert cosine(source, out) > 0.99


def test_fixed_ranges_change_convolutions_but_the_first_and_the_depthwise_ones(tmp_path):
    source, out = written(tmp_path), tmp_path / "c.onnx"
    feeds = [{"x": np.random.default_rng(k).normal(size=(8, 3, 8, 8)).astype(np.float32)} for k in range(3)]
    quantise_static(source, out, feeds=feeds, keep="features", convolutions=True)
    shapes = sorted(list(i.dims) for i in int8_weights(out))
    assert shapes == [[16, 16], [16, 16, 3, 3], [16, 16, 3, 3]]
    assert cosine(source, out) > 0.99
    quantise_static(source, out, feeds=feeds, keep="features", convolutions=False)
    assert [list(i.dims) for i in int8_weights(out)] == [[16, 16]]
