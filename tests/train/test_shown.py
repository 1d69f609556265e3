"""Claims about what notebooks 21 and 22 show of the training: the same arguments, by the libraries' own names."""

import ast
import dataclasses

from transformers import TrainingArguments

from tests.train import shown


def test_both_notebooks_show_the_same_arguments_but_for_a_devices_share_of_a_step():
    one, several = (shown.cell(name, "hyperparameters = dict(") for name in ("21_train_qlora", "22_train_fsdp"))
    assert several.replace("share.", "settings.") == one
    shared = [line.split("=")[0].strip() for line in several.splitlines() if "share." in line]
    assert shared == ["per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps"]


def test_each_argument_is_the_setting_of_its_own_name():
    (statement,) = ast.parse(shown.cell("21_train_qlora", "hyperparameters = dict(")).body
    values = {keyword.arg: ast.unparse(keyword.value) for keyword in statement.value.keywords}
    assert values.pop("per_device_eval_batch_size") == "settings.per_device_train_batch_size"
    assert values == {name: f"settings.{name}" for name in values}
    known = {field.name for field in dataclasses.fields(TrainingArguments)} | {"max_length"}  # the latter is TRL's
    assert values.keys() <= known
