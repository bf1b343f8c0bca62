from pathlib import Path
from compile.checkpoint import Checkpoint
def open_onnx(path: Path) -> Checkpoint:
    raise NotImplementedError
