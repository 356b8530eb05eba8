"""One spelling for each format of weights: what others call it is understood everywhere a name is read."""

_ALSO_CALLED = {
    "bf16": "bfloat16",
    "f16": "float16",
    "fp16": "float16",
    "f32": "float32",
    "fp32": "float32",
    "fp8_blocks": "fp8_block",
}


def format_name(name: str) -> str:
    """The name that Thermoe writes for a format that may be called otherwise; a word it does not know as it is."""
    return _ALSO_CALLED.get(name, name)
