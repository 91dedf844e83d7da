"""The sizes of a model, as SHAPE.json gives them."""

import json
import pathlib
from dataclasses import dataclass

FOLDER = pathlib.Path(__file__).parent / "shapes"


@dataclass(frozen=True)
class Shape:
    """A Llama or Qwen2 decoder with a tied head: everything that its speed depends on."""

    name: str
    gguf_arch: str
    hidden: int
    ffn: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    rope_theta: float
    context: int
    qkv_bias: bool
    head_dim: int
    norm_epsilon: float = 1e-5

    @staticmethod
    def load(path):
        """Reads SHAPE.json. `head_dim` may be left out where it is hidden / heads."""
        fields = json.loads(pathlib.Path(path).read_text())
        fields.setdefault("head_dim", fields["hidden"] // fields["heads"])
        known = Shape.__dataclass_fields__.keys()
        return Shape(**{key: value for key, value in fields.items() if key in known})


def find(name_or_path):
    """The file of a shape: a path, or the name of one in shapes/."""
    path = pathlib.Path(name_or_path)
    if path.is_file():
        return path
    known = sorted(shape.stem for shape in FOLDER.glob("*.json"))
    if name_or_path in known:
        return FOLDER / f"{name_or_path}.json"
    raise SystemExit(f"{name_or_path} is neither a file nor one of {', '.join(known)}")
