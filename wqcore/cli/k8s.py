"""`wqcore k8s`: Kubernetes objects from the configuration."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from wqcore.cli import front
from wqcore.errors import ConfigError


@front.app.command("k8s")
def render(
    config: front.ConfigOption = None,
    out: Annotated[Path, typer.Option(help="The folder that is brought up to date.")] = Path("deploy"),
    image: Annotated[str | None, typer.Option(help="Instead of kubernetes.image.")] = None,
    namespace: Annotated[str | None, typer.Option(help="Instead of kubernetes.namespace.")] = None,
    as_json: front.JsonOption = False,
    check: Annotated[bool, typer.Option("--check", help="Write nothing; exit with 1 if a file would change.")] = False,
) -> None:
    """Render Kubernetes objects for the configuration; reads no secret and touches no database."""
    try:
        from wqcore.k8s import plan, tree  # only here: no other command needs a YAML library
    except ModuleNotFoundError as error:
        raise ConfigError([f"{error.name} is not installed: pip install 'wqcore[kubernetes]'"]) from None
    path = config if config is not None else front.Choices.config
    # as the generated files call it, from wherever the command is run
    source = Path(os.path.relpath(path.resolve(), out.resolve().parent)).as_posix()
    wanted = tree.files(plan.read(path, source, image=image, namespace=namespace))
    changed = tree.differing(wanted, out) if check else tree.write(wanted, out)
    gone = [name for name in changed if not check and not (out / name).exists()]
    if as_json:
        front.print_json({"folder": str(out), "differ" if check else "changed": changed, "removed": gone})
    else:
        for name in changed:
            front.out.print(f"{out / name}{': removed' if name in gone else ''}")
    if not check:
        front.say(f"{len(changed)} files changed" if changed else f"{out} was up to date")
    elif changed:
        front.say(f"these are not what {source} makes: run `python -m wqcore k8s --config {path}`")
        raise typer.Exit(front.EXIT_REFUSED)
    else:
        front.say(f"{out} is what {source} makes")
