"""All settings as frozen dataclasses: every field with its unit, range and default.

Presets, command lines, notebooks and trials all produce a `RunSpec`, which every run folder keeps
as `spec.json`. `config.build_spec` checks names, types and ranges. Only the standard library is
imported here, so that `--help` does not wait for TensorFlow.

`SearchSpec` sets which fields vary over which values, which tuner proposes them, and when it ends:

[search]
tuner = "bayesian"
trials = 20

[search.space]
"phases.0.learning_rate" = {low = 1e-4, high = 1e-2, sampling = "log"}
"phases.1.unfreeze" = {values = ["stage5", "stage4"]}

`RankSpec` sets which trunks are compared, and limits of latency and size for the chosen one.
`AutoSpec` sets the time budget of `auto`, and limits for its trunk.
"""

from dataclasses import dataclass, field
from typing import Any, Final, Literal, NamedTuple

from keras_transfer.fields import option


class SourceRow(NamedTuple):
    """A row of the table of sources.

    `read` is the import string of a function from a `DataSpec` to a `data.records.Listing`. A path
    that ends with one of `suffixes`, in lower case, is read by this source.
    """

    read: str
    suffixes: tuple[str, ...] = ()


COLOURS: Final = 3
"""Channels of images in red, green and blue, for which most pretrained weights are."""

HEAD: Final = "head"
"""Name of the topmost stage of a model: everything above the trunk."""

SOURCES: Final = {
    "folder": SourceRow("keras_transfer.data.folder_source:read"),
    "csv": SourceRow("keras_transfer.data.csv_source:read", (".csv", ".tsv")),
    "tfds": SourceRow("keras_transfer.data.tfds_source:read"),
}
"""Where images and targets are listed, by the name of `data.source`. Other paths are folders."""


@dataclass(frozen=True, kw_only=True)
class ParameterSpec:
    """The values of one field in a search: any of `values`, or a range from `low` to `high`."""

    values: tuple[Any, ...] | None = option(None, "texts, numbers or booleans to choose from")
    low: Any = option(None, "smallest value")
    high: Any = option(None, "largest value")
    step: Any = option(
        None, "distance of the values tried, or their ratio with 'log' (none = any value between)"
    )
    sampling: Literal["linear", "log"] = option(
        "linear", "'log' draws as often from 0.001 to 0.01 as from 0.01 to 0.1"
    )


DEFAULT_SPACE = {
    "phases.0.method_options.strength": ParameterSpec(values=(0.01, 0.03, 0.1, 0.3)),
    "phases.1.learning_rate": ParameterSpec(low=1e-4, high=3e-3, sampling="log"),
    "phases.1.unfreeze": ParameterSpec(values=("head", "last", "last_two")),
    "training.label_smoothing": ParameterSpec(values=(0.0, 0.1)),
}
"""What `keras_transfer.tune` varies where neither the call nor the spec has a search space."""


@dataclass(frozen=True, kw_only=True)
class SearchSpec:
    """How `tune` searches for better values; `train` does not use it."""

    tuner: Literal["random", "bayesian", "grid", "hyperband"] = option(
        "bayesian", "which of KerasTuner's tuners proposes values"
    )
    trials: int = option(20, "maximum number of trials; 'hyperband' has its own", low=1)
    objective: Literal["val_score", "val_loss"] = option(
        "val_score",
        "figure to compare trials by: the task's metric (ties: lower loss) or the loss",
    )
    seed: int = option(0, "seed of the proposed values only", low=0)
    time_budget: str = option(
        "", "start no trial after this time, such as '90s', '20m' or '1.5h' ('' = no limit)"
    )
    refits: int = option(
        3, "number of other seeds with which the best trial and the spec itself are compared", low=0
    )
    hyperband_factor: int = option(
        3,
        "hyperband keeps the best 1 of this many and trains it for this many times the epochs",
        low=2,
    )
    hyperband_iterations: int = option(1, "how often hyperband runs all of its brackets", low=1)
    space: dict[str, ParameterSpec] = field(
        default_factory=dict,
        metadata={"help": "a table: dotted field = {values = [...]} or {low = ..., high = ...}"},
    )


@dataclass(frozen=True, kw_only=True)
class CandidateSpec:
    """One trunk to be ranked; fields that are None are those of the run's model."""

    backbone: str = option("", "as model.backbone")
    last_stage: str | None = option(None, "as model.last_stage")
    weights: str | None = option(None, "as model.weights")
    preprocess: str | None = option(None, "as model.preprocess")
    source_weights: str | None = option(
        None, "weights file of the whole network with its top: adds LEEP and NCE"
    )


@dataclass(frozen=True, kw_only=True)
class RankSpec:
    """Which trunks are compared for these images, and limits for the chosen one."""

    backbones: tuple[str | CandidateSpec, ...] = field(
        default=(),
        metadata={
            "help": "two or more names or paths, or tables {backbone=…, last_stage=…, weights=…, "
            "preprocess=…, source_weights=…}; fields that a table leaves out are those of the "
            "run's model; "
            "source_weights is a file of the whole network with its top and adds LEEP and NCE"
        },
    )
    max_latency_ms: float | None = option(
        None, "most milliseconds for one image through the frozen layers on this machine", low=0.001
    )
    max_size_mb: float | None = option(
        None, "most 10^6 bytes of the backbone's weights in float32", low=0.001
    )
    race: bool = option(False, "fine-tune the best ones; the worse half is stopped early")
    finalists: int = option(3, "how many candidates race=true fine-tunes", low=2)
    neighbours: int = option(5, "k of the k nearest neighbours", low=1)
    folds: int = option(5, "folds of the cross-validated linear probe", low=2)


@dataclass(frozen=True, kw_only=True)
class AutoSpec:
    """How long the best model is looked for, among which trunks."""

    time_budget: str = option(
        "10m", "time for everything, such as '90s', '10m' or '1.5h'; 60s or more"
    )
    max_latency_ms: float | None = option(
        None, "most milliseconds for one image through the frozen layers on this machine", low=0.001
    )
    max_size_mb: float | None = option(
        None, "most 10^6 bytes of the backbone's weights in float32", low=0.001
    )
    backbones: tuple[str, ...] = field(
        default=(),
        metadata={
            "help": "names of the backbones to try (empty = all whose weights are on this machine; "
            "with model.weights other than 'imagenet' and 'package', that of the run's model)"
        },
    )
    folds: int = option(5, "folds of the cross-validation that compares backbones and views", low=2)


@dataclass(frozen=True, kw_only=True)
class DistillSpec:
    """How a student learns from a teacher, and how often that is compared with labels alone."""

    kind: str = option("logits", "what is compared: a name in the table of kinds of distillation")
    kind_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "a table: the options of the kind"}
    )
    temperature: float | None = option(
        None, "divisor of both logits (none = the default of method 'distill')", low=0.05, high=100
    )
    hard_weight: float | None = option(
        None, "weight of the labels (none = the default of method 'distill')", low=0, high=1
    )
    unlabelled: str = option("", "folder of images without labels, at any depth")
    generations: int = option(
        1, "students one after another, each of which is the teacher of the next", low=1
    )
    seeds: int = option(3, "seeds of training that distillation is compared over", low=1)
    smaller: str = option(
        "", "smaller backbone, trained on labels alone and compared as well: a name or a path"
    )
    smaller_weights: str = option("imagenet", "those of `smaller`, as in `model.weights`")


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Where the images come from, and how they are split and resized."""

    source: str = option("folder", f"name in the table of sources: {', '.join(SOURCES)}")
    path: str = option("", "folder of class sub-folders, CSV file, or TFDS data folder")
    name: str = option("", "TFDS name, used by source = 'tfds' ('digits' is built in)")
    unlabelled: str = option(
        "",
        "folder of images without labels, at any depth, for phases whose method is 'align' or "
        "'distill'",
    )
    path_column: str = option("path", "CSV column of image paths (relative to the CSV)")
    label_column: str = option(
        "label", "CSV column of labels; several columns are separated by commas"
    )
    split_column: str = option("split", "CSV column of split names; may be absent")
    group_column: str = option("group", "CSV column of groups kept in one split; may be absent")
    train_split: str = option("train", "name of the training split in the source")
    val_split: str = option("val", "name of the validation split in the source")
    test_split: str = option("test", "name of the test split in the source")
    val_fraction: float = option(
        0.15, "share of validation images if the source has no such split", low=0.01, high=0.8
    )
    test_fraction: float = option(
        0.15, "share of test images if the source has no such split", low=0.01, high=0.8
    )
    train_size: int | None = option(
        None, "keep only this many training images, stratified (none = all)", low=1
    )
    min_per_class: int = option(
        0,
        "classes with fewer images are treated as data.rare_classes says; task = 'single_label'",
        low=0,
    )
    rare_classes: Literal["leave_out", "join"] = option(
        "leave_out", "their images are left out, or joined into one class called 'other'"
    )
    on_bad_file: Literal["skip", "error"] = option("skip", "what to do with unreadable files")
    max_megapixels: float = option(
        100.0, "larger images are reported as bad, not decoded", low=0.001
    )
    image_size: int = option(224, "side of the network's square input, px", low=8, high=2048)
    channels: int = option(
        3,
        "values of a pixel: 3 are red, green and blue; 1 is grey, of colour files as well; other "
        "numbers need arrays or .npy files [height, width, channels]",
        low=1,
        high=64,
    )
    resize: Literal["crop", "pad", "squash"] = option(
        "crop", "how an image becomes square: centre crop, black bars, or stretched"
    )
    background: Literal["white", "grey", "black"] = option(
        "white", "what is shown where an image is transparent"
    )
    bit_depth: int = option(
        16,
        "bits in use of 16-bit PNG and .npy files, of which the highest 8 are kept: 10, 12 or 14 "
        "for most cameras and scanners, else images are nearly black",
        low=8,
        high=16,
    )


@dataclass(frozen=True, kw_only=True)
class ViewSpec:
    """Augmentation. A strength of None takes the value of its policy (`data.views.POLICIES`)."""

    policy: Literal["none", "light", "strong"] = option("light", "set of default strengths")
    count: int | None = option(
        4,
        "distinct views of each training image, including the plain one: epoch e uses view "
        "e mod count (none = a new view in every epoch; features cannot be cached then)",
        low=1,
    )
    seed: int = option(
        0, "seed of the views alone, so that runs with other seeds share their features", low=0
    )
    horizontal_flip: bool | None = option(None, "mirror half of the views left to right")
    vertical_flip: bool | None = option(None, "mirror half of the views top to bottom")
    rotation: float | None = option(None, "largest angle to either side, degrees", low=0, high=180)
    zoom: float | None = option(None, "scale drawn from 1 ± this", low=0, high=0.9)
    translation: float | None = option(None, "largest shift, share of the side", low=0, high=0.5)
    crop_area: float | None = option(
        None,
        "smallest share of the area kept by the random resized crop (1 = off)",
        low=0.05,
        high=1,
    )
    crop_aspect: float | None = option(
        None, "largest aspect ratio of that crop, r or 1/r (1 = square)", low=1, high=3
    )
    brightness: float | None = option(None, "largest shift, share of 255", low=0, high=1)
    contrast: float | None = option(None, "factor drawn from 1 ± this", low=0, high=1)
    saturation: float | None = option(None, "factor drawn from 1 ± this", low=0, high=1)
    hue: float | None = option(None, "largest shift, share of a turn", low=0, high=0.5)
    noise: float | None = option(None, "standard deviation of noise, 0-255", low=0, high=128)
    erasing: float | None = option(None, "share of views with an erased box", low=0, high=1)
    erasing_area: float | None = option(
        None, "largest share of the area erased", low=0.01, high=0.9
    )


@dataclass(frozen=True, kw_only=True)
class ModelSpec:
    """Trunk, source of its weights, and head."""

    backbone: str = option(
        "resnet50",
        "name in the table of backbones, several names with + in between to combine them, or the "
        "path of a Keras model (.keras, .h5) or of a run",
    )
    last_stage: str = option("", "cut the backbone after this stage, such as 'stage3' ('' = whole)")
    weights: str = option(
        "imagenet",
        "'imagenet', 'package', 'embedded', 'none' or the path of a local weights file; with a "
        "model file or a run as backbone its own: 'file', the default there",
    )
    preprocess: str = option(
        "",
        "how pixels are scaled for the backbone, by a mode of `backbones.scaling.MODES` such as "
        "'tf' or 'none' ('' = as for the backbone's own weights, or as the model file does; "
        "'grey' = the same on images that are turned grey)",
    )
    channel_weights: Literal["mean", "rgb"] = option(
        "mean",
        "which pretrained weights of the first convolution read channels other than red, green "
        "and blue: 'mean' = all channels their mean; 'rgb' = of 4 or more channels the first three "
        "those of red, green and blue, the others the mean",
    )
    pooling: Literal["avg", "max", "flatten"] = option(
        "avg", "how the feature map becomes a vector"
    )
    head: Literal["linear", "mlp"] = option("linear", "without or with a hidden layer")
    hidden_units: int = option(256, "width of the hidden layer of head = 'mlp'", low=1)
    dropout: float = option(0.0, "share of features dropped in training", low=0, high=0.95)


@dataclass(frozen=True, kw_only=True)
class PhaseSpec:
    """One phase of training: which layers train, for how long and how fast."""

    name: str = option("frozen", "name in tables and figures")
    epochs: int = option(10, "passes over the training split", low=1)
    unfreeze: str = option(
        "head",
        "lowest stage that trains, together with all above it: 'head', 'last' (the backbone's "
        "highest), 'last_two' (its two highest), 'stage5' … 'stem'",
    )
    learning_rate: float = option(1e-3, "peak learning rate of the head", low=0)
    layer_decay: float = option(
        1.0,
        "learning rate of each stage below the head, as a factor of that of the stage above",
        low=0.01,
        high=1,
    )
    optimizer: Literal["adamw", "adam", "sgd"] = option("adamw", "sgd has momentum 0.9")
    weight_decay: float = option(1e-4, "decoupled weight decay", low=0)
    warmup_epochs: float = option(1.0, "epochs of linear warm-up", low=0)
    schedule: Literal["cosine", "constant"] = option("cosine", "learning rate after the warm-up")
    patience_epochs: int = option(
        0, "stop after this many epochs without a better validation metric (0 = never)", low=0
    )
    train_batchnorm: bool = option(
        False, "train BatchNormalization of unfrozen stages and update its statistics"
    )
    min_images: int = option(
        0, "leave the phase out where there are fewer training images than this", low=0
    )
    method: str = option("supervised", "how the phase trains: a name in the table of methods")
    method_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "a table: the options of the method"}
    )


@dataclass(frozen=True, kw_only=True)
class TrainingSpec:
    """Settings of all phases."""

    batch_size: int = option(32, "images per optimizer step, over all devices", low=1)
    label_smoothing: float | None = option(
        None,
        "share of the target spread over all classes, where heads are not solved (none = 0.1 for "
        "single labels, 0 for other tasks)",
        low=0,
        high=0.9,
    )
    class_weights: Literal["none", "balanced"] = option(
        "none", "'balanced' weighs the loss by inverse class frequency"
    )
    sampling: Literal["natural", "balanced"] = option(
        "natural", "'balanced' draws every class equally often in an epoch"
    )
    rollback: bool = option(
        True,
        "after each later phase, take the weights before it, after it, or between the two, "
        "whichever has the lowest validation loss",
    )
    refit: bool = option(
        True, "train once more on training and validation images together, before the test"
    )


@dataclass(frozen=True, kw_only=True)
class DeviceSpec:
    """Devices and precision."""

    strategy: Literal["auto", "cpu", "mirrored", "data_parallel"] = option(
        "auto",
        "one device or several that share every batch: 'mirrored' (TensorFlow, GPUs of one host), "
        "'data_parallel' (JAX: GPUs, TPUs, several hosts); 'auto' takes all accelerators",
    )
    precision: Literal["auto", "float32", "mixed_bfloat16", "mixed_float16"] = option(
        "auto",
        "Keras's global dtype policy; 'auto' is bfloat16 on TPUs, half precision on GPUs with "
        "units for it, else float32; logits are always float32",
    )
    batch_size: int | None = option(
        None,
        "images in memory at once, over all devices; below training.batch_size gradients are "
        "accumulated (none = all of the batch, and fewer after memory runs out)",
        low=1,
    )
    hosts: int = option(
        1,
        "processes on this machine that train together like hosts of a cluster (JAX only; on a "
        "cluster, set Keras's variables KERAS_DISTRIBUTION_… instead)",
        low=1,
    )


@dataclass(frozen=True, kw_only=True)
class CacheSpec:
    """The cache for the outputs of frozen layers."""

    mode: Literal["auto", "on", "off"] = option(
        "auto",
        "train on cached features where they fit ('auto'), always, or never",
    )
    folder: str = option(
        "", "where ('' = features/ below $KERAS_TRANSFER_HOME or ~/.cache/keras_transfer)"
    )
    limit_gb: float = option(
        20.0, "largest size, 10^9 bytes; the least recently used entries are removed", low=0.001
    )
    dtype: Literal["float16", "float32"] = option("float16", "data type of cached features")
    precision: Literal["auto", "float32", "bfloat16", "float16"] = option(
        "auto", "precision of frozen layers; 'auto' is the fastest that agrees with float32"
    )


@dataclass(frozen=True, kw_only=True)
class ExportSpec:
    """How a trained model is exported."""

    precision: Literal["float32", "bfloat16"] = option(
        "float32",
        "precision of the exported backbone; bfloat16 is used only if it agrees with the model and "
        "is faster",
    )


@dataclass(frozen=True, kw_only=True)
class FolderSpec:
    """What the run folder has besides its results."""

    keep_images: Literal["proof", "none"] = option(
        "proof",
        "'proof' copies up to 256 test and 64 training images into the run, so that it can be "
        "exported again where its data are not",
    )


TWO_PHASES = (
    PhaseSpec(name="frozen", method="exact", epochs=15, unfreeze="head", learning_rate=1e-3),
    PhaseSpec(
        name="fine-tune",
        epochs=10,
        unfreeze="last_two",
        learning_rate=1e-3,
        layer_decay=0.7,
        min_images=1000,
    ),
)


@dataclass(frozen=True, kw_only=True)
class RunSpec:
    """All settings of a run. Frozen; `override(spec, {...})` makes a changed copy."""

    name: str = option("run", "name of the run and of its default folder")
    task: str = option("single_label", "kind of target: a name in the table of tasks")
    task_options: dict[str, Any] = field(
        default_factory=dict, metadata={"help": "a table: the options of the task"}
    )
    seed: int = option(
        0, "seed of splits, initial weights, order and dropout; views.seed is separate", low=0
    )
    folds: int = option(1, "cross-validation: how many folds (1 = a single split)", low=1)
    seeds: int = option(1, "repetitions with seed, seed + 1, … (1 = a single run)", low=1)
    halvings: int = option(
        0, "learning curve: how often to halve the training images (0 = all of them)", low=0
    )
    data: DataSpec = field(default_factory=DataSpec)
    views: ViewSpec = field(default_factory=ViewSpec)
    model: ModelSpec = field(default_factory=ModelSpec)
    phases: tuple[PhaseSpec, ...] = TWO_PHASES
    training: TrainingSpec = field(default_factory=TrainingSpec)
    devices: DeviceSpec = field(default_factory=DeviceSpec)
    cache: CacheSpec = field(default_factory=CacheSpec)
    search: SearchSpec = field(default_factory=SearchSpec)
    export: ExportSpec = field(default_factory=ExportSpec)
    run: FolderSpec = field(default_factory=FolderSpec)

    @property
    def num_epochs(self) -> int:
        """Epochs of all phases together, if none stops early."""
        return sum(phase.epochs for phase in self.phases)

    @property
    def num_trials(self) -> int:
        """Most trainings of the spec; a study has more than one."""
        return self.folds * self.seeds * (self.halvings + 1)


@dataclass(frozen=True, kw_only=True)
class PretrainSpec:
    """How a trunk is pretrained on rendered letters."""

    name: str = option("letters", "name of the pretraining")
    seed: int = option(0, "seed of letters, initial weights and order", low=0)
    backbone: str = option("resnet50", "name in the table of backbones")
    last_stage: str = option("stage3", "highest stage that is trained and kept")
    image_size: int = option(32, "side of the square letters, px", low=16, high=512)
    num_letters: int = option(40_000, "new letters rendered for every epoch", low=32)
    batch_size: int = option(64, "letters per optimizer step", low=1)
    label_smoothing: float = option(0.0, "share of the target spread over all classes", low=0)
    phase: PhaseSpec = field(
        default_factory=lambda: PhaseSpec(
            name="letters", epochs=8, unfreeze="stem", train_batchnorm=True
        )
    )
