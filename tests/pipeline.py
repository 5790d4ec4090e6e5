"""A whole road in about twenty seconds: realm, paintings, backbone, run, probe. Started as a process of its own."""

import sys

import cilkit
from cilkit import incremental

ARCH = {"arch": "resnet10t", "model_args": {"channels": [8, 8, 16, 16], "stem_width": 8, "stem_type": ""}}


def main(workers: int = 2) -> None:
    incremental.EVERY = 0.0  # a checkpoint after every epoch
    realm = cilkit.foresee("handwritten characters", classes=10)
    painted = cilkit.paint(realm, generator="embedded", per_class=14, batch_size=16, workers=workers)
    rendered = cilkit.paint(realm, generator="font-renderings", per_class=14, batch_size=16, workers=1)
    stream = cilkit.stream("digits", order_seed=1993, increment=2)
    for images in (painted, rendered):
        backbone = cilkit.pretrain(images, **ARCH, epochs=3, batch_size=32)
        run = cilkit.run("slca", stream[:3], backbone=backbone, epochs=2, align_epochs=2)
    cilkit.run("icarl+synthetic_replay", stream[:3], backbone=backbone, images=painted, epochs=1, per_class=5)
    print(run.artifact.digest)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
