"""`pgworker completion`."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class

_SHELLS = ("bash", "zsh", "fish")


@click.command()
@click.argument("shell", type=click.Choice(_SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print what makes your shell complete commands, options and files.

    \b
    bash: eval "$(pgworker completion bash)"     in ~/.bashrc
    zsh:  eval "$(pgworker completion zsh)"      in ~/.zshrc, after compinit
    fish: pgworker completion fish > ~/.config/fish/completions/pgworker.fish
    """
    root = ctx.find_root()
    script = get_completion_class(shell)
    assert script is not None
    print(script(root.command, {}, "pgworker", "_PGWORKER_COMPLETE").source())
