"""The vocabulary projection as a module that computes its own losses."""

from torch import Tensor, nn

from ds_distill.kernels.fused_linear import fused_linear_distillation_loss


class VocabularyProjection(nn.Linear):
    """The student's decoder, which computes its losses instead of returning logits.

    It owns weight [V, H] and bias [V], so ZeRO-3 gathers them for exactly this call. It keeps
    nn.Linear's names, so the student's state dict is the one that Hugging Face expects.
    """

    @classmethod
    def replacing(cls, linear: nn.Linear) -> "VocabularyProjection":
        """Return a projection with the same parameters (not copies: ties stay ties)."""
        projection = cls.__new__(cls)
        nn.Module.__init__(projection)
        projection.in_features, projection.out_features = linear.in_features, linear.out_features
        projection.weight, projection.bias = linear.weight, linear.bias
        return projection

    # nn.Linear calls it `input`; everybody gives it by position
    def forward(  # type: ignore[override]
        self, hidden: Tensor, *losses_of, **options
    ) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Return logits for one argument, or the losses for more.

        The losses are fused_linear_distillation_loss(hidden, weight, bias, *losses_of, **options).
        """
        return self.compute(hidden, self.weight, *losses_of, **options)

    def compute(self, hidden: Tensor, weight: Tensor, *losses_of, **options) -> Tensor | tuple[Tensor, Tensor, Tensor]:
        """Return what `forward` does, with another weight [V, H] in place of its own."""
        if not losses_of:
            return nn.functional.linear(hidden, weight, self.bias)
        return fused_linear_distillation_loss(hidden, weight, self.bias, *losses_of, **options)
