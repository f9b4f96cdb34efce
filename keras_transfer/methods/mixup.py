"""Mixup and CutMix: training on weighted means of two examples, or on images pasted together.

Targets and weights are mixed so that the loss is the mean of both examples' losses. On stored
features mixup mixes features instead of images, which is called manifold mixup.

Sources: H. Zhang et al., "mixup: Beyond Empirical Risk Minimization", ICLR 2018. S. Yun et al.,
"CutMix", ICCV 2019. V. Verma et al., "Manifold Mixup", ICML 2019.
"""

from dataclasses import dataclass, field
from typing import ClassVar

import keras
import numpy as np

from keras_transfer.data.datasets import Columns
from keras_transfer.errors import SpecError
from keras_transfer.fields import option
from keras_transfer.methods.method import MethodDefaults
from keras_transfer.specs import PhaseSpec
from keras_transfer.training.objective import Objective, PhaseContext

_STREAM = int.from_bytes(b"mix")
"""Makes the random draws differ from others with the same seed, epoch and step."""


@dataclass(frozen=True, kw_only=True)
class MixupOptions:
    """Options of mixup and CutMix."""

    alpha: float = option(
        0.2, "mixup: the share λ is drawn from Beta(alpha, alpha) (0 = no mixup)", low=0, high=100
    )
    cutmix_alpha: float = option(
        0.0, "CutMix: the same for its own share λ (0 = no CutMix)", low=0, high=100
    )
    probability: float = option(1.0, "share of the batches that are mixed", low=0, high=1)

    def __post_init__(self) -> None:
        if not self.probability or not (self.alpha or self.cutmix_alpha):
            raise SpecError(
                "method 'mixup' would mix nothing",
                expected="alpha or cutmix_alpha above 0, and probability above 0",
                received=f"alpha={self.alpha:g}, cutmix_alpha={self.cutmix_alpha:g}, "
                f"probability={self.probability:g}",
                fix="set phases.N.method_options.alpha=0.2, or phases.N.method=supervised",
            )


@dataclass(frozen=True)
class Mixup(MethodDefaults):
    """Mixes the examples of a training batch with each other, by mixup or by CutMix.

    Where both are on, each batch uses one of them, with equal probability.
    """

    options: MixupOptions = field(default_factory=MixupOptions)

    Options: ClassVar = MixupOptions
    name: ClassVar[str] = "mixup"

    @property
    def needs_images(self) -> bool:
        """Whether CutMix is on, which needs pixels: stored features have none."""
        return self.options.cutmix_alpha > 0

    def prepare(self, context: PhaseContext, phase: PhaseSpec, part: keras.Model) -> Objective:
        """The task's loss on mixed batches."""
        what = "stored features (manifold mixup)" if context.on_features else "images"
        context.reporter.info(f"Phase {phase.name!r} trains on mixtures of {what}.")
        return Objective(part, context.task.loss(context.spec.training), self.mix)

    def mix(
        self,
        inputs: np.ndarray,
        encoded: np.ndarray,
        weights: np.ndarray,
        key: tuple[int, int, int],
    ) -> Columns:
        """A batch mixed with a permutation of itself; one λ and one box for all of it.

        An example of weight w and target y, mixed with one of w' and y', has the weight
        λ w + (1 - λ) w' and the target (λ w y + (1 - λ) w' y') divided by it: its loss is then
        λ and 1 - λ times the weighted losses of both targets. A target value that is NaN in
        either is NaN. Examples of weight 0, which fill a batch, are not mixed with others.
        """
        generator = np.random.default_rng([*key, _STREAM])
        real = np.flatnonzero(weights > 0)
        if generator.random() >= self.options.probability:
            return inputs, encoded, weights
        partners = generator.permutation(real)
        mixed = inputs.copy(), encoded.copy(), weights.copy()
        mixed[0][real], share = self._mix_inputs(inputs[real], inputs[partners], generator)
        own, other = share * weights[real], (1 - share) * weights[partners]
        targets = own[:, None] * encoded[real] + other[:, None] * encoded[partners]
        mixed[1][real] = targets / (own + other)[:, None]
        mixed[2][real] = own + other
        return mixed

    def _mix_inputs(
        self, inputs: np.ndarray, partners: np.ndarray, generator: np.random.Generator
    ) -> tuple[np.ndarray, np.float32]:
        """Mixed inputs, and the share of the first of each pair in them."""
        alpha, cutmix_alpha = self.options.alpha, self.options.cutmix_alpha
        if cutmix_alpha and not (alpha and generator.random() < 0.5):
            height, width = inputs.shape[1:3]
            kept = generator.beta(cutmix_alpha, cutmix_alpha)
            rows, columns = draw_box(kept, height, width, generator)
            inputs[:, rows, columns] = partners[:, rows, columns]
            area = (rows.stop - rows.start) * (columns.stop - columns.start)
            return inputs, np.float32(1 - area / (height * width))
        share = np.float32(generator.beta(alpha, alpha))
        return share * inputs + (1 - share) * partners, share


def draw_box(
    share: float, height: int, width: int, generator: np.random.Generator
) -> tuple[slice, slice]:
    """Rows and columns of a box, before clipping, that keeps this share of the image outside it.

    Its centre is uniform over the pixels, and it has the aspect ratio of the image.
    """
    sides = []
    for length in (height, width):
        side, centre = round(length * np.sqrt(1 - share)), generator.integers(length)
        start = int(centre) - side // 2
        sides.append(slice(max(start, 0), min(start + side, length)))
    return sides[0], sides[1]
