"""`diffusion-forcing play`: the page on which the shipped models are played with."""

from __future__ import annotations

import argparse
import webbrowser
from collections.abc import Sequence

from diffusion_forcing.errors import UserError
from diffusion_forcing.launch.commands import Parser
from diffusion_forcing.terminal import say

USAGE = "diffusion-forcing play [--port 8000] [--host 127.0.0.1] [--no-browser] [--threads 1]"


def play(words: Sequence[str]) -> None:
    """The command; words: its arguments."""
    parser = Parser("play", usage=USAGE, add_help=False, allow_abbrev=False, argument_default=argparse.SUPPRESS)
    parser.add_argument("--host")
    parser.add_argument("--port", type=int)
    parser.add_argument("--threads", type=int)
    parser.add_argument("--no-browser", dest="browser", action="store_false")
    given = vars(parser.parse_args(list(words)))
    try:
        from diffusion_forcing.serve.play.server import PlayOptions, create_app, serve
        from diffusion_forcing.serve.play.session import builders
    except ModuleNotFoundError as missing:
        raise UserError(f"play needs the package '{missing.name}': pip install 'diffusion-forcing[play]'") from missing
    options = PlayOptions(**given)
    app = create_app(builders(options.threads))

    def started(address: str) -> None:
        say(f"the page is at {address}; Ctrl-C ends it")
        if not options.local:
            say(
                f"warning: anyone who reaches {options.host} can use this page and this machine's processor; 127.0.0.1 is local only"
            )
        app.state.stages["world"].prepare()
        if options.browser:
            webbrowser.open(address)

    serve(app, options, started=started)
    say("the page has ended")
