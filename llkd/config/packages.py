"""Checks for optional packages: those that only one of LLKD's extras installs."""

from importlib.util import find_spec

from llkd.errors import ConfigError


def require_packages(feature: str, *names: str, extra: str, otherwise: str | None = None) -> None:
    """Check that packages are installed, without importing them.

    Args:
        feature: the setting or command that needs them.
        names: the packages, as they are imported.
        extra: the extra of LLKD that installs them.
        otherwise: an alternative, which completes "Install it: ..., or".

    Raises:
        ConfigError: names the missing packages.
    """
    missing = [name for name in names if find_spec(name) is None]
    if missing:
        alternative = "" if otherwise is None else f", or {otherwise}"
        raise ConfigError(
            f"{feature} needs {', '.join(missing)}, which is not installed",
            f"Install it: pip install '.[{extra}]'{alternative}.",
        )
