"""Names of methods as members of peft's `PeftType`: the only place that changes its enum."""

from peft.utils import PeftType


def register_peft_type(name: str) -> PeftType:
    """Add `name` to peft's `PeftType`, as if it had been written there; a second call changes nothing.

    peft insists that a method's name is a member of this enum (`register_peft_method`) and looks the string of a
    saved `adapter_config.json` up in mappings keyed by its members, and enums cannot be subclassed.
    """
    key = name.upper()
    if key in PeftType.__members__:
        return PeftType[key]
    member = str.__new__(PeftType, key)
    member._name_ = key
    member._value_ = key
    PeftType._member_names_.append(key)
    PeftType._member_map_[key] = member
    PeftType._value2member_map_[key] = member
    type.__setattr__(PeftType, key, member)
    if PeftType(key) is not member or PeftType[key] is not member or key not in list(PeftType):
        raise ImportError(
            f"hf_i2v could not add {key!r} to peft's PeftType enum; this version of Python or peft builds enums "
            "differently. Please report it with both versions."
        )
    return member
