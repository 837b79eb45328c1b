"""splitpoint completion: what a shell needs to complete verbs, options and their values."""

from __future__ import annotations

import click

from splitpoint.cli.help_pages import verb


@verb(
    ("bash, in every shell that is opened from now on (zsh: ~/.zshrc)", "completion bash >> ~/.bashrc"),
    ("fish", "completion fish > ~/.config/fish/completions/splitpoint.fish"),
)
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def command(shell: str) -> None:
    """Print the script that has SHELL complete verbs, options and their values with the Tab key."""
    from click.shell_completion import get_completion_class

    from splitpoint.cli.verbs import COMPLETE, group

    kind = get_completion_class(shell)
    assert kind is not None
    # Not `source`, which starts bash to ask for its version: one that is too old says so itself.
    its = kind(group, {}, "splitpoint", COMPLETE)
    click.echo(its.source_template % its.source_vars())
