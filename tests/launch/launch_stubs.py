"""Programs that stand in for those of the cloud: they note how they were called, and answer."""

import json
import os
import shlex
import subprocess
import sys

import smoke

LAUNCH = smoke.ROOT / "launch"
SLICE = ("--name=run-1", "--project=proj", "--zone=us-west4-a", "--bucket=gs://buck")
GIN = ("--gin_file=gin/clp_attn.gin", "--gin_file=gin/briefs.gin")
AWKWARD = (
    "--gin.REWARDS=('rouge', 'a  b')", '--gin.TEXT="it\'s $HOME `date` \\ & ; *"', "", "two\nlines",
    "~/x", "--gin.N=1e-4",
)  # fmt: skip

# Chips and hosts of each shape of TPU v5e.
CHIPS = {"1x1": 1, "2x2": 4, "2x4": 8, "4x4": 16, "4x8": 32, "8x8": 64, "8x16": 128, "16x16": 256}
HOSTS = {"1x1": 1, "2x2": 1, "2x4": 1, "4x4": 4, "4x8": 8, "8x8": 16, "8x16": 32, "16x16": 64}

# Appends its name and arguments to `calls`. Of the answers whose part is in the call, the first
# list counts; its entries [exit code, output] are used up one after the other, the last one stays.
PROGRAM = """#!{python} -IS
import json, os, sys
folder = {folder!r}
call = [os.path.basename(sys.argv[0]), *sys.argv[1:]]
if call[0] == "kubectl" and "--filename=-" in call:
    open(folder + "/stdin", "w").write(sys.stdin.read())
with open(folder + "/calls", "a") as file:
    file.write(json.dumps(call) + chr(10))
for number, (part, answers) in enumerate(json.load(open(folder + "/answers"))):
    if part in " ".join(call):
        used = folder + f"/used{{number}}"
        with open(used, "a") as file:
            file.write(".")
        code, output = answers[min(os.path.getsize(used), len(answers)) - 1]
        print(output, end=chr(10) if output else "")
        sys.exit(code)
"""


class Stubs:
    """A folder of stubs, and scripts run with it in front of the PATH."""

    def __init__(self, folder, *names):
        self.folder = folder
        self.answers = []
        (folder / "bin").mkdir(parents=True)
        (folder / "program").write_text(PROGRAM.format(python=sys.executable, folder=str(folder)))
        (folder / "program").chmod(0o755)
        for name in names:
            (folder / "bin" / name).symlink_to(folder / "program")

    def answer(self, part, *answers):
        """What calls that contain `part` give: exit codes, or outputs with exit code 0."""
        entries = [[a, ""] if isinstance(a, int) else [0, a] for a in answers]
        self.answers.insert(0, (part, entries))

    @property
    def environment(self):
        return {
            "PATH": f"{self.folder / 'bin'}:/usr/local/bin:/usr/bin:/bin",
            "HOME": str(self.folder / "home"),
            "TMPDIR": str(self.folder),
            "LANG": "C.UTF-8",
            "CLP_JAX_MOUNT": str(self.folder / "gcs"),
        }

    def run(self, script, *arguments):
        """Runs launch/`script`; its calls of stubs are in `calls` afterwards."""
        (self.folder / "home").mkdir(exist_ok=True)
        (self.folder / "answers").write_text(json.dumps(self.answers))
        (self.folder / "calls").write_text("")
        for used in self.folder.glob("used*"):
            used.unlink()
        return subprocess.run(
            ["bash", str(smoke.ROOT / "launch" / script), *arguments],
            cwd=self.folder, env=self.environment, capture_output=True, text=True,
            check=False, timeout=60, stdin=subprocess.DEVNULL,
        )  # fmt: skip

    @property
    def calls(self):
        """All calls, each a list of its name and arguments."""
        return [json.loads(line) for line in (self.folder / "calls").read_text().splitlines()]

    def calls_with(self, part):
        """The calls that contain `part`."""
        return [call for call in self.calls if part in " ".join(call)]

    def remote_arguments(self, call):
        """What tpu_vm_worker.sh gets of a recorded `ssh --command=…`, through a host's shell."""
        (command,) = (a.removeprefix("--command=") for a in call if a.startswith("--command="))
        home = self.folder / "remote"
        home.mkdir(exist_ok=True)
        (home / "tpu_vm_worker.sh").write_text('printf "%s\\0" "$@"\n')
        # ssh hands the words over with spaces between them; gcloud split the command at these.
        done = subprocess.run(
            ["sh", "-c", " ".join(command.split(" "))],
            cwd=home, capture_output=True, text=True, check=True,
        )  # fmt: skip
        return done.stdout.split("\0")[:-1]


def pasted(output):
    """The commands of a dry run, as a shell reads them."""
    return [shlex.split(line) for line in output.splitlines() if line and line[0] != "#"]


def alive(pid):
    """Whether a process exists."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True
