"""The golden messages of `tests/wire`, which the tests of every client read."""

import json
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parents[1] / "wire"
GOLDEN: dict[str, dict[str, Any]] = {
    path.stem: json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))
}
PATCHES: list[dict[str, Any]] = GOLDEN.pop("patches")["patches"]
# The actions of a client after each HTTP answer and close code.
ANSWERS: dict[str, Any] = GOLDEN.pop("answers")
