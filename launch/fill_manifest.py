"""Fills in a manifest: each line `key: value  # NAME` gets the value of NAME, written as JSON.

  python3 launch/fill_manifest.py TEMPLATE [NAME=JSON]... [NAME[]=TEXT]... [--without=NAME]...

NAME[]=TEXT adds an argument to the list NAME, those of a container. --without drops the lines that
are marked NAME. JSON is YAML, too.
"""

import json
import re
import sys

MARKED = re.compile(r"(?P<key>\s*[\w./-]+: ).*  # (?P<name>[A-Z_]+)")
DROPPED = re.compile(r".*  # (?P<name>[A-Z_]+)")


def values_of(arguments):
    """The values by name, and the names whose lines are left out."""
    values, left_out = {}, set()
    for argument in arguments:
        name, _, value = argument.partition("=")
        if name == "--without":
            left_out.add(value)
        elif name.endswith("[]"):
            # In a container's arguments Kubernetes replaces $(NAME), and reads $$ as $.
            values.setdefault(name[:-2], []).append(value.replace("$", "$$"))
        else:
            values[name] = json.loads(value)
    return values, left_out


def fill(template, values, left_out):
    """The template's text with the values; a value that no line asks for is an error."""
    lines, used = [], set()
    for line in template.splitlines():
        dropped = DROPPED.fullmatch(line)
        if dropped and dropped["name"] in left_out:
            continue
        marked = MARKED.fullmatch(line)
        if marked and marked["name"] in values:
            used.add(marked["name"])
            line = marked["key"] + json.dumps(values[marked["name"]], ensure_ascii=False)
        lines.append(line)
    if unused := values.keys() - used:
        raise SystemExit(f"no line of the template is marked {', '.join(sorted(unused))}")
    return "\n".join(lines) + "\n"


def main(arguments):
    """The command."""
    with open(arguments[0], encoding="utf-8") as file:
        template = file.read()
    sys.stdout.write(fill(template, *values_of(arguments[1:])))


if __name__ == "__main__":
    main(sys.argv[1:])
