"""From pooled features to logits: hidden fully connected layers with dropout, then the classifier."""

from collections.abc import Collection, Sequence

from torch import Tensor, nn

from spp_cls.models.backbone import init_layer


class Head(nn.Module):
    """Fc layers hidden1, hidden2 and on, each with ReLU and dropout, then the classifier (section 3.1).

    N x in_features values give N x num_classes logits. `hidden=()` is a linear classifier, `num_classes=0` none.
    """

    def __init__(
        self, in_features: int, hidden: Sequence[int] = (4096, 4096), num_classes: int = 1000, drop_rate: float = 0.5
    ) -> None:
        super().__init__()
        self.in_features = in_features
        # Units of the hidden layers.
        self.hidden = tuple(hidden)
        self.drop_rate = drop_rate
        for number, width in enumerate(hidden, start=1):
            self.add_module(f"hidden{number}", nn.Linear(in_features, width))
            self.add_module(f"relu{number}", nn.ReLU(inplace=True))
            self.add_module(f"drop{number}", nn.Dropout(drop_rate))
            in_features = width
        # Values before the classifier.
        self.hidden_size = in_features
        self.classifier: nn.Module = _create_classifier(in_features, num_classes)

    @property
    def num_classes(self) -> int:
        """Classes of the classifier; 0 without one."""
        return self.classifier.out_features if isinstance(self.classifier, nn.Linear) else 0

    @property
    def layer_names(self) -> tuple[str, ...]:
        """Names of the layers that forward_to knows: hidden1 and on, logits."""
        return (*(f"hidden{number}" for number in range(1, len(self.hidden) + 1)), "logits")

    def forward(self, values: Tensor, pre_logits: bool = False) -> Tensor:
        """Map N x in_features values to N x num_classes logits, or to the N x hidden_size values before them."""
        *hidden, classifier = self.children()
        for layer in hidden:
            values = layer(values)
        return values if pre_logits else classifier(values)

    def forward_to(self, values: Tensor, layer: str) -> Tensor:
        """Map N x in_features values to the outputs of a layer of `layer_names`; those of hidden layers after ReLU."""
        return self.forward_layers(values, [layer])[layer]

    def forward_layers(self, values: Tensor, layers: Collection[str]) -> dict[str, Tensor]:
        """Map N x in_features values to the outputs of several layers, as forward_to does for one, in one pass."""
        wanted = {layer.replace("hidden", "relu") if layer != "logits" else "classifier": layer for layer in layers}
        outputs: dict[str, Tensor] = {}
        for name, module in self.named_children():
            if len(outputs) == len(wanted):
                break
            values = module(values)
            if name in wanted:
                outputs[wanted[name]] = values
        return outputs

    def init_weights(self, init: str) -> None:
        """Set the initial weights: N(0, 0.01) with biases 1 (paper), or He's (kaiming); the classifier's last."""
        for layer in self.modules():
            if isinstance(layer, nn.Linear):
                init_layer(layer, init, bias=1.0)
        # Drawn once more, so that a seed gives the weights that it always gave.
        self.init_classifier()

    def init_classifier(self) -> None:
        """Set the initial weights of the classifier: N(0, 0.01), biases 0."""
        if isinstance(self.classifier, nn.Linear):
            init_layer(self.classifier, "paper", bias=0.0)

    def reset_classifier(self, num_classes: int, like: Tensor | None = None) -> None:
        """Put a new classifier in place of the old one; with 0 classes, none.

        It has the device and dtype of the head's parameters, or of `like` if the head has none.
        """
        parameter = next(iter(self.parameters()), like)
        classifier = _create_classifier(self.hidden_size, num_classes)
        self.classifier = classifier if parameter is None else classifier.to(parameter.device, parameter.dtype)
        self.init_classifier()


def find_best_classes(scores: Tensor, k: int = 5) -> tuple[Tensor, Tensor]:
    """Return the k highest scores of the last dimension and their classes, best first; of fewer classes, all."""
    best = scores.topk(min(k, scores.shape[-1]), dim=-1)
    return best.values, best.indices


def _create_classifier(in_features: int, num_classes: int) -> nn.Module:
    return nn.Linear(in_features, num_classes) if num_classes else nn.Identity()
