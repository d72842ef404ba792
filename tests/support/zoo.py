"""The zoo: one tiny model of each architecture that the rules have to fit. The entries are in the
``zoo_*.py`` files."""

from __future__ import annotations

from zoo_decoders import DECODERS
from zoo_encoders import ENCODER_DECODERS, ENCODERS
from zoo_entry import Entry
from zoo_experts import MIXTURES
from zoo_multimodal import MULTIMODAL
from zoo_sound import SOUND
from zoo_vision import VISION

ZOO: dict[str, Entry] = (
    ENCODERS | DECODERS | ENCODER_DECODERS | MIXTURES | VISION | SOUND | MULTIMODAL
)
