"""Segment an image with an exported ONNX graph, without nnU-Net and without PyTorch.

    python onnx_sliding_window.py model.onnx segmentation.nii.gz image_0000.nii.gz [image_0001 …]

Pass one file for each channel, in the order of the training data. The script needs numpy, scipy,
scikit-image, SimpleITK and onnxruntime. It follows nnU-Net: transpose, crop, normalise, resample,
slide a window over the image, average over mirrorings, and undo resampling, crop and transposition.
"""

import itertools
import json
import sys

import numpy as np
import onnxruntime
import SimpleITK
from scipy.ndimage import binary_fill_holes, gaussian_filter
from skimage.transform import resize


def segment(model_file, image_files):
    """Segment an image; return an array in the order of SimpleITK's axes (z, y, x)."""
    session = onnxruntime.InferenceSession(model_file, providers=["CPUExecutionProvider"])
    properties = session.get_modelmeta().custom_metadata_map
    model = {name: json.loads(value) for name, value in properties.items()}
    if model["previous_stage"] is not None:
        raise SystemExit("the second stage of a cascade also needs the first one's segmentation")

    images = [SimpleITK.ReadImage(file) for file in image_files]
    data = np.stack([SimpleITK.GetArrayFromImage(image) for image in images]).astype(np.float32)
    order = model["transpose_forward"]
    data = data.transpose(0, *(axis + 1 for axis in order))
    spacing = np.array(images[0].GetSpacing()[::-1])[order]
    whole = data.shape[1:]

    mask = binary_fill_holes((data != 0).any(axis=0))
    crop = bounding_box(mask)
    data, mask = data[(slice(None), *crop)], mask[crop]
    data = np.stack(
        [normalise(*each, mask) for each in zip(data, model["normalization"], strict=True)]
    )
    # a 2-D network sees single slices, whose spacing does not change
    target = np.array([*spacing[: 3 - len(model["spacing"])], *model["spacing"]])
    cropped = data.shape[1:]
    shape = [round(n * s / t) for n, s, t in zip(cropped, spacing, target, strict=True)]
    data = resample(data, shape, spacing, target, model["resampling"]["image"])

    logits = slide(session, data, model)

    logits = resample(logits, cropped, target, spacing, model["resampling"]["logits"])
    segmentation = np.zeros(whole, np.uint8 if max_label(model) < 255 else np.uint16)
    segmentation[crop] = labels_of(logits, model)
    return segmentation.transpose(model["transpose_backward"])


def bounding_box(mask):
    """The smallest box around the non-zero voxels."""
    points = np.argwhere(mask)
    if not len(points):
        return tuple(slice(0, length) for length in mask.shape)
    return tuple(
        slice(low, high + 1) for low, high in zip(points.min(0), points.max(0), strict=True)
    )


def normalise(image, settings, mask):
    """Normalise one channel in the same way as during training."""
    scheme, known = settings["scheme"], settings["intensities"]
    if scheme == "ZScoreNormalization":
        inside = mask if settings["use_mask"] else np.ones_like(mask)
        mean, deviation = image[inside].mean(), image[inside].std()
        return np.where(inside, (image - mean) / max(deviation, 1e-8), image)
    if scheme == "CTNormalization":
        clipped = np.clip(image, known["percentile_00_5"], known["percentile_99_5"])
        return (clipped - known["mean"]) / max(known["std"], 1e-8)
    if scheme == "RescaleTo01Normalization":
        image = image - image.min()
        return image / max(image.max(), 1e-8)
    if scheme == "RGBTo01Normalization":
        return image / 255
    if scheme == "NoNormalization":
        return image
    raise SystemExit(f"unknown normalisation {scheme}")


def resample(data, shape, spacing, target, settings):
    """Resample each channel to a shape; thick slices are resampled one by one."""
    if tuple(data.shape[1:]) == tuple(shape):
        return data
    if settings["function"] != "resample_data_or_seg_to_shape" or settings["order_z"] != 0:
        raise SystemExit(f"resampling other than nnU-Net's default: {settings}")
    axis = thick_axis(spacing, target, settings["force_separate_z"])
    options = {"order": settings["order"], "mode": "edge", "anti_aliasing": False}
    result = []
    for channel in data.astype(np.float64):
        if axis is None:
            result.append(resize(channel, shape, **options))
            continue
        flat = [length for index, length in enumerate(shape) if index != axis]
        slices = [resize(each, flat, **options) for each in np.moveaxis(channel, axis, 0)]
        nearest = ((np.arange(shape[axis]) + 0.5) * len(slices) / shape[axis]).astype(int)
        result.append(np.stack([slices[index] for index in nearest], axis=axis))
    return np.stack(result).astype(np.float32)


def thick_axis(spacing, target, forced):
    """The axis along which the spacing is more than three times that of the others, or None."""
    if forced is False:
        return None
    for each in (np.asarray(spacing), np.asarray(target)):
        if forced or each.max() / each.min() > 3:
            (thickest,) = np.nonzero(each == each.max())
            return thickest[0] if len(thickest) == 1 else None
    return None


def slide(session, data, model):
    """The logits of a whole image: overlapping windows, weighted towards their middle."""
    patch = model["patch_size"]
    flat = 3 - len(patch)  # a 2-D network sees one slice at a time
    size = np.maximum(data.shape[1:], [*data.shape[1 : 1 + flat], *patch])
    missing = size - data.shape[1:]
    padding = [(m // 2, m - m // 2) for m in missing]
    data = np.pad(data, [(0, 0), *padding])
    importance = np.zeros(patch)
    importance[tuple(length // 2 for length in patch)] = 1
    importance = gaussian_filter(importance, [length / 8 for length in patch], mode="constant")
    importance = (importance / (importance.max() / 10)).astype(np.float32).astype(np.float16)
    importance = np.maximum(importance, importance[importance > 0].min())
    # nnU-Net sums in half precision; its rounding decides between labels with nearly equal logits
    logits = np.zeros((len(model["output_channels"]), *size), np.float16)
    weights = np.zeros(size, np.float16)
    starts = [range(length) for length in size[:flat]]
    starts += [window_starts(*each) for each in zip(size[flat:], patch, strict=True)]
    for start in itertools.product(*starts):
        corners = zip(start[flat:], patch, strict=True)
        window = (*start[:flat], *(slice(low, low + length) for low, length in corners))
        logits[(slice(None), *window)] += importance * predict(session, data, window, model)
        weights[window] += importance
    if not np.isfinite(logits).all():
        raise SystemExit("the logits are too large for half precision; nnU-Net refuses them, too")
    inside = (slice(low, n - high) for (low, high), n in zip(padding, size, strict=True))
    return (logits / weights)[(slice(None), *inside)]


def window_starts(length, patch):
    """Start positions of evenly spaced windows that overlap by at least half."""
    steps = int(np.ceil((length - patch) / (patch / 2)))
    return [round((length - patch) * step / max(steps, 1)) for step in range(steps + 1)]


def predict(session, data, window, model):
    """The mean of the logits over all mirrorings, computed as one batch."""
    axes = model["mirroring_axes"] or []
    flips = [each for n in range(len(axes) + 1) for each in itertools.combinations(axes, n)]
    patch = data[(slice(None), *window)]
    batch = np.stack([np.flip(patch, [axis + 1 for axis in axes]) for axes in flips])
    (logits,) = session.run(None, {"image": np.ascontiguousarray(batch, np.float32)})
    pairs = zip(logits, flips, strict=True)
    return np.mean([np.flip(each, [axis + 1 for axis in axes]) for each, axes in pairs], axis=0)


def labels_of(logits, model):
    """The label of each voxel; for overlapping regions, the label that is written last."""
    if model["activation"] == "softmax":
        return logits.argmax(axis=0)  # softmax does not change the order
    segmentation = np.zeros(logits.shape[1:], np.uint16)
    for region, label in zip(logits, model["regions_class_order"], strict=True):
        segmentation[region > 0] = label  # where the sigmoid is above 0.5
    return segmentation


def max_label(model):
    """The largest label of the model."""
    return max(np.max(label) for label in model["labels"].values())


if __name__ == "__main__":
    model_file, output_file, *image_files = sys.argv[1:]
    result = SimpleITK.GetImageFromArray(segment(model_file, image_files))
    result.CopyInformation(SimpleITK.ReadImage(image_files[0]))
    SimpleITK.WriteImage(result, output_file)
