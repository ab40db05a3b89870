"""Fails loudly when a new peft or Python builds its enums differently."""

import json

from peft import PeftType
from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING
from processes import finish, start

from hf_i2v import ZeroI2VConfig
from hf_i2v.peft_type import register_peft_type
from hf_i2v.registration import register_method


def test_the_enum_has_our_types_as_if_written_there():
    member = PeftType.ZEROI2V
    assert PeftType("ZEROI2V") is PeftType["ZEROI2V"] is member
    assert member in list(PeftType) and isinstance(member, PeftType)
    assert member == "ZEROI2V" and member.value == "ZEROI2V" and member.name == "ZEROI2V"
    assert json.dumps({"peft_type": member}) == '{"peft_type": "ZEROI2V"}'
    assert PEFT_TYPE_TO_CONFIG_MAPPING["ZEROI2V"] is ZeroI2VConfig
    assert "LORA" in list(PeftType)


def test_registering_twice_changes_nothing():
    names = list(PeftType)
    register_method(ZeroI2VConfig)
    assert register_peft_type("zeroi2v") is PeftType.ZEROI2V
    assert list(PeftType) == names


def import_was_enough():
    import preloaded

    assert "ZEROI2V" in preloaded.REGISTERED


def test_import_is_enough(tmp_path):
    finish(start(import_was_enough, log=tmp_path / "log"), log=tmp_path / "log")
