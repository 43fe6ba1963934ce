"""The network as an ONNX graph, for those who run it without nnU-Net."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nnunet_unifiedloss.export.metadata import consumer_metadata
from nnunet_unifiedloss.export.models import Model
from nnunet_unifiedloss.export.network import relative_difference
from nnunet_unifiedloss.export.patches import real_patches

INPUT, OUTPUT = "image", "logits"
# between torch and onnxruntime on one processor, relative to the largest logit if that is above 1
GRAPH_TOLERANCE = 1e-4
_OPSET = 18  # read by every onnxruntime since 1.14
_MOST_BYTES = 2**31 - 2**24  # one file is one protocol buffer, which ends at 2 GiB


class FoldMean(nn.Module):
    """The mean of the folds' logits, which is how nnU-Net combines folds.

    Args:
        folds: The network of each fold.
    """

    def __init__(self, folds: Sequence[nn.Module]) -> None:
        super().__init__()
        self.folds = nn.ModuleList(folds)

    def forward(self, image: Tensor) -> Tensor:
        """The logits of a batch."""
        logits: Tensor = self.folds[0](image)
        for fold in list(self.folds)[1:]:
            logits = logits + fold(image)
        return logits / len(self.folds)


def fold_mean(network: nn.Module, weights: Sequence[dict[str, Tensor]]) -> FoldMean:
    """The ensemble of a network with each of several weights."""
    folds = [copy.deepcopy(network) for _ in weights]
    for fold, each in zip(folds, weights, strict=True):
        fold.load_state_dict(each)
    return FoldMean(folds).eval()


def export_graph(network: nn.Module, shape: Sequence[int], metadata: dict[str, Any]) -> bytes:
    """Write a network as ONNX.

    Args:
        network: The network.
        shape: (channels, *patch size) of its input.
        metadata: Entries to store with the graph; values are written as JSON.

    Returns:
        The file: input ``image``, output ``logits``, any batch size.

    Raises:
        ImportError: The extra ``onnx`` is not installed.
        ValueError: It is too large for one file.
        RuntimeError: The network cannot be written as ONNX.
    """
    require_packages()
    size = sum(each.numel() * each.element_size() for each in network.parameters())
    if size > _MOST_BYTES:
        raise ValueError(
            f"--onnx: the weights take {size / 2**30:.1f} GiB, and an ONNX file holds less than 2; "
            "remedy: --onnx folds writes one file for each fold"
        )
    example = torch.zeros(2, *shape)
    try:
        with _quiet(), torch.inference_mode():
            program = torch.onnx.export(
                network,
                (example,),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT],
                dynamic_shapes=[{0: torch.export.Dim("batch")}],
                opset_version=_OPSET,
                verbose=False,
            )
    except Exception as error:  # torch's exporter raises whatever the network's code does
        raise RuntimeError(
            f"--onnx: torch cannot write this network as ONNX ({type(error).__name__}: "
            f"{str(error).strip().splitlines()[0]}); remedy: export without --onnx"
        ) from error
    assert program is not None
    return _with_metadata(program.model_proto, metadata)


def _with_metadata(graph: Any, metadata: dict[str, Any]) -> bytes:  # noqa: ANN401
    """The file, without the paths of source files that torch stores with each node."""
    for each in (*graph.graph.node, *graph.graph.input, *graph.graph.output):
        each.ClearField("metadata_props")
        each.ClearField("doc_string")
    for each in (*graph.graph.initializer, *graph.graph.value_info, *graph.functions, graph.graph):
        each.ClearField("metadata_props")
        each.ClearField("doc_string")
    graph.ClearField("metadata_props")
    for key, value in metadata.items():
        graph.metadata_props.add(key=key, value=json.dumps(value))
    content: bytes = graph.SerializeToString()
    return content


def run_graph(graph: bytes, batch: np.ndarray) -> np.ndarray:
    """The logits that onnxruntime computes for a batch."""
    from onnxruntime import InferenceSession

    session = InferenceSession(graph, providers=["CPUExecutionProvider"])
    logits: np.ndarray = session.run([OUTPUT], {INPUT: batch})[0]
    return logits


def compare_graph(graph: bytes, network: nn.Module, patches: Sequence[np.ndarray]) -> float:
    """Run a graph and the network that it was written from on the same patches.

    Args:
        graph: The ONNX file.
        network: The network.
        patches: Each (channels, *patch size).

    Returns:
        The largest difference, relative to the largest logit where that is above 1.

    Raises:
        RuntimeError: It is above :data:`GRAPH_TOLERANCE`.
    """
    largest = 0.0
    for patch in patches:
        # a batch of one and a batch of three, as the size is free
        for batch in (patch[None], np.stack([patch, -patch, patch[:, ::-1]])):
            with torch.inference_mode():
                expected = network(torch.from_numpy(batch)).numpy()
            largest = max(largest, relative_difference(run_graph(graph, batch), expected))
    if not largest <= GRAPH_TOLERANCE:
        raise RuntimeError(
            f"--onnx: the graph's logits differ from torch's by {largest:.2g} of the largest, and "
            f"{GRAPH_TOLERANCE:.2g} is allowed; remedy: another version of torch or onnxruntime"
        )
    return largest


def model_graphs(
    model: Model,
    checkpoint: str,
    network: nn.Module,
    weights: Sequence[dict[str, Tensor]],
    sample: np.ndarray,
    *,
    mirroring: Sequence[int] | None,
    each_fold: bool,
) -> Iterator[tuple[str, bytes, str]]:
    """Write and compare the graphs of a checkpoint.

    Args:
        model: The model.
        checkpoint: File name of the checkpoint.
        network: Its network.
        weights: The weights of each fold.
        sample: A patch; patches of training images are added where there are any.
        mirroring: The axes along which nnU-Net mirrors.
        each_fold: One graph for each fold, instead of one for their mean.

    Yields:
        Name below the model's folder, content, and what the comparison found.

    Raises:
        RuntimeError: A graph cannot be written, or does not compute what torch does.
    """
    stem, real = Path(checkpoint).stem, real_patches(model)
    patches = [sample.astype(np.float32), *real]
    groups = [(f"{stem}.onnx", list(model.folds), list(weights))]
    if each_fold:
        each = zip(model.folds, weights, strict=True)
        groups = [(f"{stem}_fold_{fold}.onnx", [fold], [own]) for fold, own in each]
    for file, folds, chosen in groups:
        mean = fold_mean(network, chosen)
        metadata = consumer_metadata(model, folds, mirroring)
        graph = export_graph(mean, sample.shape, metadata)
        difference = compare_graph(graph, mean, patches)
        remark = (
            f"onnx/{file}: onnxruntime and torch differ by {difference:.1g} of the largest logit, "
            f"on noise and {len(real) or 'no'} patches of training images."
        )
        yield f"onnx/{file}", graph, remark


def require_packages() -> None:
    """Check that the extra ``onnx`` is installed, before hours of work.

    Raises:
        ImportError: The extra ``onnx`` is not installed.
    """
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise ImportError(
            f"--onnx needs {error.name}; remedy: pip install 'nnunet-unifiedloss[onnx]'"
        ) from error


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence torch's exporter."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
