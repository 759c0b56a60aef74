"""The nodes' inputs for settings that the library knows: its defaults, ranges and sentences, and all of them there."""


def test_every_setting_is_an_input_as_the_library_has_it(comfy):
    known = comfy.pack_module("sara_core.training.settings").SETTINGS
    inputs = {}
    for name in ("SaRATrain", "SaRATrainOptions"):
        inputs.update((item.id, item) for item in comfy.node_class(name).GET_SCHEMA().inputs)
    assert known.keys() <= inputs.keys()
    for name, setting in known.items():
        item = inputs[name]
        assert item.default == setting.default and type(item.default) is type(setting.default), name
        assert item.tooltip.startswith(setting.help), name
        assert (getattr(item, "min", None), getattr(item, "max", None)) == (setting.least, setting.most), name
        assert tuple(getattr(item, "options", ())) == tuple(setting.choices), name
