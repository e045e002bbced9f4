#!/usr/bin/env bash
# gin-config 0.5.0, dynamic registration: clear_config() forgets bindings, not the names by which earlier
# files imported things. A file that imports the same module by another name is written back by
# config_str() under the earlier name, under which the file itself has no import of it.
#
# A good engineer would guess that after clear_config() the text of config_str() depends on the files that
# were parsed since. It does not: whoever compares two such texts, to tell whether a saved configuration
# still is the one at hand, finds that equal configurations differ.
#
# Seen: the second file alone gives "posixpath.basename.p = 'b'"; after the first one, it gives
# "path.basename.p = 'b'" and both imports.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet gin-config==0.5.0
"$folder/venv/bin/python" - <<'PYTHON'
import gin

HEAD = "from __gin__ import dynamic_registration\n"
FIRST = HEAD + "from os import path\npath.basename.p = 'a'\n"
SECOND = HEAD + "import posixpath\nposixpath.basename.p = 'b'\n"  # os.path, on POSIX


def text(*files):
    for file in files:
        gin.clear_config()
        gin.parse_config(file)
    return gin.config_str()


after = text(FIRST, SECOND)
print("after the first file:\n" + after)
assert "path.basename.p = 'b'" in after and "\nposixpath.basename.p" not in after
assert "from os import path\n" in after and "import posixpath\n" in after
PYTHON
"$folder/venv/bin/python" - <<'PYTHON'
import gin

gin.parse_config(
    "from __gin__ import dynamic_registration\nimport posixpath\nposixpath.basename.p = 'b'\n"
)
alone = gin.config_str()
print("alone:\n" + alone)
assert "\nposixpath.basename.p = 'b'" in alone and "from os import path" not in alone
PYTHON
echo "as described: gin-config 0.5.0"
