"""`cilkit export`: an image set for other programs."""

import argparse
from pathlib import Path


def add(commands: argparse._SubParsersAction) -> None:
    export = commands.add_parser("export", help="give an image set to other programs")
    export.add_argument("images", help="stage/key, a folder, or a parameter file of notebook 02")
    export.add_argument("form", choices=("imagefolder", "huggingface", "parquet", "webdataset"))
    export.add_argument("target", type=Path, help="a new folder; of webdataset the pattern of its tars, out/%%06d.tar")
    export.set_defaults(call=_export)


def _export(options: argparse.Namespace) -> int:
    from cilkit.road.inputs import upstream
    from cilkit.synthesis import export

    images = upstream(options.images, "images")
    if options.form == "imagefolder":
        export.to_imagefolder(images, options.target)
    elif options.form == "webdataset":
        export.to_webdataset(images, options.target)
    else:
        export.to_huggingface(images, options.target, "disk" if options.form == "huggingface" else "parquet")
    print(f"{len(images)} images of {len(images.class_names)} classes: {options.target}")
    return 0
