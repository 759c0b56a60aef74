"""What the published node pack holds: of each of these in the repository's root, every file that git tracks."""

PUBLISHED = {
    "CHANGELOG.md", "LICENSE", "README.md", "__init__.py", "example_workflows", "install.py", "js", "locales", "nodes",
    "pyproject.toml", "requirements.txt", "sara_core",
}  # fmt: skip
