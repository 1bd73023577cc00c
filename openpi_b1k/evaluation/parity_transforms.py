"""Stored results of openpi's and openpi-comet's transforms against ours."""

from collections.abc import Callable

import numpy as np

from openpi_b1k.config.data import CAMERAS
from openpi_b1k.data.statistics.distribution import QUANTILES, Distribution
from openpi_b1k.evaluation.parity import Comparison, Reference, Results, Skipped, largest_error
from openpi_b1k.robots.r1pro import r1pro
from openpi_b1k.transforms.actions import AbsoluteActions, DeltaActions
from openpi_b1k.transforms.b1k import B1kInputs
from openpi_b1k.transforms.geometry import depth_to_points
from openpi_b1k.transforms.images import resize_with_pad
from openpi_b1k.transforms.normalize import FieldStats, Normalize, NormStats, Unnormalize
from openpi_b1k.transforms.segmentation import labels_to_image
from openpi_b1k.transforms.tokenize import prompt_text, state_bins

EXACT = 1e-6
SEGMENTATION_MEAN = 0.01
"""Levels of 255 that the means of two images may differ by: labels are resized to the nearest pixel here."""
STORED_PROMPT = "turn on the radio"


def compare(reference: Reference) -> Results:
    """Returns the comparisons of every group of transforms that the file holds."""
    groups = [name for name in GROUPS if any(key.startswith(f"{name}/") for key in reference)]
    return [result for name in groups for result in GROUPS[name](reference)]


def compare_b1k(reference: Reference) -> Results:
    """Compares what is extracted from a raw sample, the state in comet's order."""
    sample = {
        "proprio": reference["b1k/in/proprio"],
        "images": {name: reference[f"b1k/in/{name}"] for name in CAMERAS},
        "prompt": STORED_PROMPT,
    }
    robot = r1pro("grippers_last")
    fields = B1kInputs(robot, CAMERAS)(sample)
    sums = np.array([fields["images"][name].sum(dtype=np.int64) for name in CAMERAS])
    points = depth_to_points(reference["b1k/in/depth"], robot.camera("head"), stride=9)
    means = labels_to_image(reference["b1k/in/seg"].astype(np.uint8), 224).mean((0, 1))
    expected = reference["b1k/out/seg_image_224_mean"]
    return [
        Comparison("b1k state", largest_error(fields["state"], reference["b1k/out/state"]), EXACT),
        Comparison("b1k sum of images", largest_error(sums, reference["b1k/out/image_sum"]), EXACT),
        Comparison("b1k point cloud", largest_error(points, reference["b1k/out/pcd_xyz_downsample9"]), EXACT),
        Comparison("b1k mean of segmentation", largest_error(means, expected), SEGMENTATION_MEAN, "of 255 levels"),
    ]


def compare_resize(reference: Reference) -> Results:
    """Compares resized images, which must agree bit for bit."""
    pairs = {"head": reference["b1k/in/head"], "rect": reference["resize/in/rect"]}
    return [
        Comparison(f"resize {name}", largest_error(resize_with_pad(image, 224), reference[f"resize/out/{name}_224"]), 0)
        for name, image in pairs.items()
    ]


def compare_delta(reference: Reference) -> Results:
    """Compares relative actions and their inverse; openpi goes by index, so the state is ordered like the action."""
    names, robot = ("torso", "left_arm", "right_arm"), r1pro("like_action")
    sample = {"state": reference["b1k/out/state"], "actions": reference["b1k/in/actions"]}
    relative = DeltaActions(names, robot)(sample)
    absolute = AbsoluteActions(names, robot)(relative)
    return [
        Comparison("delta actions", largest_error(relative["actions"], reference["delta/out/actions"]), EXACT),
        Comparison("delta round trip", largest_error(absolute["actions"], reference["delta/out/roundtrip"]), EXACT),
    ]


def compare_norm(reference: Reference) -> Results:
    """Compares normalised values under the stored statistics, unclipped, and how near the true quantiles ours come."""
    field = FieldStats(**{name: reference[f"norm/out/{name}"] for name in ("mean", "std", "q01", "q99")})
    stats = NormStats(field, field)
    sample = {"state": reference["b1k/out/state"], "actions": reference["b1k/in/actions"]}
    quantile = Normalize(stats, "quantile", clip=None)(sample)
    zscore = Normalize(stats, "zscore", clip=None)(sample)
    restored = Unnormalize(stats, "quantile")(quantile)["actions"]
    expected = reference["norm/out/actions_unnormalized_padded"]
    padded = np.pad(restored, ((0, 0), (0, expected.shape[-1] - restored.shape[-1])))
    pairs = {
        "norm state_quantile": (quantile["state"], reference["norm/out/state_quantile"]),
        "norm actions_quantile": (quantile["actions"], reference["norm/out/actions_quantile"]),
        "norm state_zscore": (zscore["state"], reference["norm/out/state_zscore"]),
        "norm actions_unnormalized": (padded, expected),
    }
    results: Results = [Comparison(name, largest_error(*pair), EXACT) for name, pair in pairs.items()]
    return results + _compare_quantiles(reference)


def _compare_quantiles(reference: Reference) -> Results:
    samples = reference["norm/in/samples"]
    ours = []
    for values in samples.T:
        distribution = Distribution()
        distribution.update(values)
        ours.append(distribution.quantiles())
    results: Results = []
    for name, values, at in zip(("q01", "q99"), np.array(ours).T, QUANTILES, strict=True):
        true = np.quantile(samples.astype(np.float64), at, axis=0)
        theirs = largest_error(reference[f"norm/out/{name}"], true)
        results.append(Comparison(f"norm {name}", largest_error(values, true), theirs, "to truth; limit: openpi's"))
    return results


def compare_prompt(reference: Reference) -> Results:
    """Compares state bins and prompt; where openpi writes -1 for a value below its range, ours is bin 0."""
    bins = state_bins(reference["norm/out/state_quantile"])
    text = bytes(reference["prompt/text"]).decode()
    ours = prompt_text(STORED_PROMPT, bins.tolist())
    num_different = float(ours != text.replace(" -1", " 0"))
    return [
        Comparison("prompt bins", largest_error(bins, np.maximum(reference["prompt/state_bins"], 0)), 0),
        Comparison("prompt text", num_different, 0, "1 where it differs"),
    ]


def compare_control(_: Reference) -> Results:
    """Says that execution of chunks is not compared."""
    return [Skipped("control", "ways to execute a chunk are not built yet")]


GROUPS: dict[str, Callable[[Reference], Results]] = {
    "b1k": compare_b1k,
    "resize": compare_resize,
    "delta": compare_delta,
    "norm": compare_norm,
    "prompt": compare_prompt,
    "control": compare_control,
}
