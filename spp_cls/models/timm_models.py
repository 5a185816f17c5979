"""timm's networks: their names, what they were trained with, and their weights."""

from difflib import get_close_matches
from typing import Any, NamedTuple
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import timm
from huggingface_hub import constants

from spp_cls.cli.errors import UserError, shorten

PREFIX = "timm/"

# Seconds that the Hugging Face Hub may take to answer at all.
_PATIENCE = 5


class Preprocessing(NamedTuple):
    """What a network's published weights were trained with: mean and std of pixels of 0..255, and the crop."""

    mean: tuple[float, ...]
    std: tuple[float, ...]
    input_size: int
    interpolation: str


def find_preprocessing(name: str) -> Preprocessing:
    """Return the preprocessing that timm states for a network, of the pretrained tag in its name or the default one.

    Raises:
        UserError: if timm has no such network or tag.
    """
    architecture = get_architecture(name)
    cfg = timm.get_pretrained_cfg(name.removeprefix(PREFIX)) or timm.get_pretrained_cfg(architecture)
    if cfg is None:
        raise UserError(f"timm states no preprocessing of {name}; set model.mean, model.std and model.input_size")
    mean, std = (tuple(round(255 * value, 4) for value in values) for values in (cfg.mean, cfg.std))
    return Preprocessing(mean, std, cfg.input_size[-1], cfg.interpolation)


def get_architecture(name: str) -> str:
    """Return the name of a network without prefix and tag.

    Raises:
        UserError: if timm has no such network, or no such tag of it.
    """
    architecture, _, tag = name.removeprefix(PREFIX).partition(".")
    if not timm.is_model(architecture):
        close = get_close_matches(architecture, timm.list_models(), n=3, cutoff=0.5)
        hint = f"did you mean {' or '.join(close)}?" if close else "timm.list_models() lists its networks"
        raise UserError(f"timm has no network {architecture!r}; {hint}")
    if tag:
        tags = [each.partition(".")[2] for each in timm.list_pretrained(f"{architecture}.*")]
        if tag not in tags:
            raise UserError(f"timm has no weights {tag!r} of {architecture}; there are {', '.join(tags) or 'none'}")
    return architecture


def create_model(name: str, in_chans: int, pretrained: bool = False) -> Any:
    """Create a network of timm without its classifier."""
    return timm.create_model(name.removeprefix(PREFIX), pretrained=pretrained, in_chans=in_chans, num_classes=0)


def load_model(name: str, in_chans: int) -> Any:
    """Create a network with timm's weights, from the local cache or, where it can be reached, the Hub."""
    is_connected, offline = _is_hub_reachable(), constants.HF_HUB_OFFLINE
    # Its client would try again and again for most of a minute, on a line each.
    constants.HF_HUB_OFFLINE = offline or not is_connected
    try:
        return create_model(name, in_chans, pretrained=True)
    except Exception as error:  # timm, the Hub's client and its transport each have their own
        why = shorten(error) if is_connected else f"{constants.ENDPOINT} cannot be reached"
        raise UserError(
            f"the weights of {name} cannot be loaded ({why}); connect once, name a tag that has weights, or set "
            "model.pretrained=false"
        ) from error
    finally:
        constants.HF_HUB_OFFLINE = offline


def _is_hub_reachable() -> bool:
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=_PATIENCE).close()
    except HTTPError:
        return True
    except OSError:
        return False
    return True
