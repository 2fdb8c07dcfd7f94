"""The commands that train networks. Each hands its arguments to the trainer, which has a parser of its own: trainers
are also run by ``accelerate launch`` and ``python -m``, without this command line.
"""

import importlib

import typer

train = typer.Typer(help="Train a network; `fastinv train psp --help` lists the options of pSp.", no_args_is_help=True)

# module of fastinv.training -> line of help
TRAINERS = {
    "generator": "A StyleGAN2 generator, on the procedural faces or a folder of pictures.",
    "psp": "A pSp encoder for a generator, or a ReStyle one.",
    "e4e": "An e4e encoder for a generator, or a ReStyle one: codes that edit well.",
    "idinvert": "IDInvert's domain-guided encoder for a generator, against a discriminator.",
    "alae": "ALAE: a generator and an encoder that learn together.",
    "attributes": "The network that reads the attributes of the procedural faces.",
}


def _command(module: str):
    def run(context: typer.Context) -> None:
        importlib.import_module(f"fastinv.training.{module}").main(context.args)

    return run


for _name, _help in TRAINERS.items():
    _settings = {"allow_extra_args": True, "ignore_unknown_options": True}
    train.command(_name, help=_help, context_settings=_settings, add_help_option=False)(_command(_name))
