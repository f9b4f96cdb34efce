"""Attention transfer: the student's feature maps are strong where the teacher's are.

Source: S. Zagoruyko and N. Komodakis, "Paying more attention to attention", ICLR 2017.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import keras
from keras import ops

from keras_transfer.backbones.graph import Call, calls_of
from keras_transfer.errors import SpecError
from keras_transfer.fields import option
from keras_transfer.methods.distillation.kind import Batch, KindDefaults, divergences, unit_rows
from keras_transfer.models.cuts import Cut


class AttentionMap(keras.layers.Layer):
    """The mean of squares over channels as a vector of norm 1: [B, H, W, C] to [B, rows columns].

    A map of another size than `size`, rows and columns, is interpolated after the mean.
    """

    def __init__(self, size: tuple[int, int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.size = tuple(size)

    def call(self, maps: Any) -> Any:
        """See the class."""
        energy = ops.mean(ops.square(maps), axis=-1, keepdims=True)
        if tuple(maps.shape[1:3]) != self.size:
            energy = ops.image.resize(energy, self.size, data_format="channels_last")
        return unit_rows(ops.reshape(energy, (-1, self.size[0] * self.size[1])))

    def get_config(self) -> dict[str, Any]:
        """The arguments."""
        return {**super().get_config(), "size": self.size}


@dataclass(frozen=True, kw_only=True)
class AttentionOptions:
    """Options of attention transfer."""

    weight: float = option(1.0, "weight of the attention against the soft labels", low=0)
    maps: int = option(
        1, "number of feature maps, the last of each size, from the highest down", low=1
    )


@dataclass(frozen=True)
class Attention(KindDefaults):
    """The divergence of kind 'logits' plus weight times a squared distance of attention maps.

    It is the mean over pairs of maps, between 0 and 2. Channels may differ in number; the student's
    maps are interpolated to the size of the teacher's.
    """

    options: AttentionOptions = field(default_factory=AttentionOptions)

    Options: ClassVar = AttentionOptions
    name: ClassVar[str] = "attention"
    reads_features: ClassVar[bool] = True

    def teacher_cut(self, below: Cut) -> Cut:
        """The attention of the teacher's maps, one behind the other."""
        maps = self._maps(calls_of(below.model), "the teacher")
        joined = _attention(maps, [_size(one) for one in maps])
        return Cut(below.model, joined, f"attention in {below.name.partition(' of ')[2]}")

    def student_features(self, calls: Sequence[Call], teacher: Cut) -> Any:
        """The attention of the student's maps, in the size of the teacher's."""
        theirs = self._maps(calls_of(teacher.model), "the teacher")
        ours = self._maps(calls, "the part of the student that trains")
        return _attention(ours, [_size(one) for one in theirs])

    def losses(self, batch: Batch) -> Any:
        """See the class."""
        squares = ops.square(batch.student_features - batch.teacher_features)
        weight = self.options.weight / self.options.maps
        return divergences(batch) + weight * ops.sum(squares, axis=-1)

    def _maps(self, calls: Sequence[Call], whose: str) -> list[Any]:
        """The last map of each size, from the highest down; SpecError if there are too few."""
        tensors = [tensor for call in calls for tensor in call.makes if len(tensor.shape) == 4]
        last = {_size(tensor): tensor for tensor in tensors}
        # With one position all attention is there.
        found = [last[size] for size in sorted(last) if size[0] * size[1] > 1]
        if len(found) < self.options.maps:
            raise SpecError(
                f"kind 'attention' of distillation compares feature maps, of which {whose} has too "
                "few",
                expected=f"kind_options.maps={self.options.maps} maps of different sizes, with "
                "more than one position each",
                received=", ".join(f"{rows} × {columns}" for rows, columns in last) or "none",
                fix="unfreeze a lower stage, lower kind_options.maps, or choose another kind",
            )
        return found[: self.options.maps]


def _size(maps: Any) -> tuple[int, int]:
    rows, columns = maps.shape[1:3]
    return rows, columns


def _attention(maps: Sequence[Any], sizes: Sequence[tuple[int, int]]) -> Any:
    pairs = zip(maps, sizes, strict=True)
    each = [AttentionMap(size, dtype="float32")(one) for one, size in pairs]
    return each[0] if len(each) == 1 else keras.layers.Concatenate(dtype="float32")(each)
