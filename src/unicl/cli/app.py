"""The command: its verbs, its exit status, and plain words for whatever goes wrong."""

import logging
import sys

from cyclopts import App, CycloptsError
from rich.console import Console

from unicl.cli.adapt import finetune
from unicl.cli.answer import classify, embed, search
from unicl.cli.caption import caption
from unicl.cli.concepts import concepts
from unicl.cli.exchange import export, inspect, merge
from unicl.cli.explain import explain
from unicl.cli.learn import check, demo, evaluate, shard, train
from unicl.cli.words import label
from unicl.errors import BadImage, UserError

app = App(
    name="unicl",
    help="Train, adapt, evaluate and use language-image models on any mix of labelled, captioned and unpaired data.\n\n"
    "DATA is a folder, table, tar or saved data set, `PATH` or `PATH?image=COLUMN&text=COLUMN&label=COLUMN&weight=2&"
    "namespace=NAME`.",
    help_format="markdown",
)
for _verb in (
    check,
    train,
    finetune,
    evaluate,
    embed,
    classify,
    search,
    caption,
    explain,
    inspect,
    export,
    merge,
    shard,
    label,
    concepts,
    demo,
):
    app.command(_verb)


def main(arguments: list[str] | None = None) -> None:
    """Run the command and leave with its exit status: 0 good, 1 failed, 2 a mistake of the user's, 130 interrupted."""
    errors = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
    # An installed torchao makes torch warn of its own registrations whenever transformers is imported.
    logging.getLogger("torch.utils._pytree").setLevel(logging.ERROR)
    try:
        code = app(arguments, exit_on_error=False, print_error=False, result_action="return_value")
    except CycloptsError as error:
        errors.print(f"unicl: {_plain(error)}\nSee unicl --help.")
        code = 2
    except UserError as error:
        if not error.silent:
            errors.print(f"unicl: {error}")
        code = error.code
    except BadImage as error:
        errors.print(f"unicl: an image cannot be used: {error}")
        code = 2
    except KeyboardInterrupt:
        errors.print("unicl: interrupted")
        code = 130
    except BrokenPipeError:
        code = 141
    sys.exit(code if isinstance(code, int) else 0)


def _plain(error: CycloptsError) -> str:
    return str(error).strip()
