"""What text may hold."""

import re
from collections.abc import Mapping
from typing import Any


def check_text(row: Mapping[str, Any], where: str) -> None:
    """Raises ValueError, with `where`, if a string has half of a surrogate pair: no text has."""
    for field, value in row.items():
        if isinstance(value, str) and (found := re.search("[\ud800-\udfff]", value)):
            raise ValueError(
                f"{where}: field {field!r} has the lone surrogate {found[0]!r} at character "
                f"{found.start()}, which no encoding of text holds; write the character whole"
            )
